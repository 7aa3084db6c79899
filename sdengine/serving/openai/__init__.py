"""OpenAI's images API over the service; see the heading of that name in serving/README.md."""

from sdengine.serving.openai.routes import router as router
