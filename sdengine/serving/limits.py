"""Limits of what a server takes: sizes, steps, bytes, times and places in its queue."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sdengine.errors import ConfigError
from sdengine.request.request import Request


@dataclass(frozen=True)
class Limits:
    """What a server takes from clients.

    Args:
        max_pixels: of an image, at the larger of its two passes.
        max_steps: of both passes together.
        max_images: of a request.
        max_body_bytes: of the body of an HTTP request.
        max_bodies_bytes: of all bodies that are read or kept at once.
        max_picture_pixels: of a picture that a request brings.
        max_held_bytes: of the decoded pictures of all requests that wait or run.
        max_prompt_characters: of a prompt.
        max_queue: requests that wait; more are refused with the time after which to try again.
        max_queue_of_token: of those that one token has waiting, unless its own entry says another.
        header_seconds, body_seconds: in which the head and the body of a request must have come.
        keep_jobs, keep_bytes, keep_seconds: of finished jobs of one token whose results may still
            be fetched.
    """

    max_pixels: int = 2048 * 2048
    max_steps: int = 200
    max_images: int = 16
    max_body_bytes: int = 32 << 20
    max_bodies_bytes: int = 256 << 20
    max_picture_pixels: int = 1 << 24
    max_held_bytes: int = 512 << 20
    max_prompt_characters: int = 10_000
    max_queue: int = 64
    max_queue_of_token: int = 32
    header_seconds: int = 10
    body_seconds: int = 60
    keep_jobs: int = 256
    keep_bytes: int = 256 << 20
    keep_seconds: int = 600

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if type(value) is not int or value < 1:
                raise ConfigError.for_field(one.name, value, "an integer from 1")

    def check(self, request: Request) -> None:
        """Refuse a request that asks for more.

        Raises:
            ConfigError: so it does; the message names the field.
        """
        sizes = {"width, height": (request.width, request.height)}
        steps = request.num_steps_run
        if request.hires is not None:
            sizes["hires"] = request.hires_size(request.width, request.height)
            steps += request.hires_steps or request.steps
        for name, (width, height) in sizes.items():
            if width * height > self.max_pixels:
                accepted = f"at most {self.max_pixels} pixels on this server"
                raise ConfigError.for_field(name, f"{width}x{height}", accepted)
        if steps > self.max_steps:
            accepted = f"at most {self.max_steps} on this server"
            raise ConfigError.for_field("steps", steps, accepted)
        if request.batch_size > self.max_images:
            accepted = f"at most {self.max_images} on this server"
            raise ConfigError.for_field("batch_size", request.batch_size, accepted)
        for name in ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt"):
            value = getattr(request, name)
            for text in value if isinstance(value, tuple) else (value,):
                if text is not None and len(text) > self.max_prompt_characters:
                    shown = f"a text of {len(text)} characters"
                    accepted = f"at most {self.max_prompt_characters} on this server"
                    raise ConfigError.for_field(name, shown, accepted)
