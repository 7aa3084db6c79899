"""Web UI's API, as its clients know it from a widely used server."""

from sdengine.serving.web_ui.routes import router

__all__ = ["router"]
