"""Sizes of what an operation makes, from its step and the sizes of what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from sdengine.backends.native.step import Step
from sdengine.errors import BundleError


class Size(NamedTuple):
    """[images, height, width, channels] of a map."""

    images: int
    height: int
    width: int
    channels: int

    @property
    def rows(self) -> int:
        """Pixels of all images."""
        return self.images * self.height * self.width

    @property
    def elements(self) -> int:
        """Values."""
        return self.rows * self.channels


Sizes = Mapping[str, Size]


def refuse(step: Step, problem: str) -> NoReturn:
    """Raise a BundleError that names the step."""
    raise BundleError(f"step {step.name!r} ({step.kind}) {problem}.")


def same_size(_: Step, inputs: Sizes) -> Size:
    """Of what changes values one by one, or along the channels."""
    return inputs["x"]


def new_channels(step: Step, inputs: Sizes) -> Size:
    """Of a linear layer."""
    return inputs["x"]._replace(channels=step.channels)


def convolved(step: Step, inputs: Sizes) -> Size:
    """Of a convolution."""
    x = inputs["x"]
    factor = 2 if step.upsample else 1
    height, width = (
        (side * factor + 2 * step.padding + step.padding_after - step.kernel) // step.stride + 1
        for side in (x.height, x.width)
    )
    return Size(x.images, height, width, step.channels)


def attended(step: Step, inputs: Sizes) -> Size:
    """Of attention: as its queries."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    if k != v or q.images != k.images or q.channels != k.channels or q.channels % step.heads:
        refuse(step, f"has {step.heads} heads of {list(q)}, {list(k)}, {list(v)}")
    return q


def added(step: Step, inputs: Sizes) -> Size:
    """Of a sum: as its first operand; the second may be one image for all, or one row for each."""
    a, b = inputs["a"], inputs["b"]
    same_map = b[1:] == a[1:] and b.images in (1, a.images)
    if not same_map and b != Size(a.images, 1, 1, a.channels):
        refuse(step, f"adds {list(b)} to {list(a)}")
    return a


def scaled(step: Step, inputs: Sizes) -> Size:
    """Of a group norm whose statistics are known: a scale and a shift for each channel."""
    x = inputs["x"]
    if inputs["factors"] != Size(x.images, 1, 1, 2 * x.channels):
        refuse(step, f"has factors of {list(inputs['factors'])} beside {list(x)}")
    return x


def cosines_and_sines(step: Step, inputs: Sizes) -> Size:
    """Of a sinusoid: both of every frequency, for each value of a row."""
    x = inputs["x"]
    if x.height * x.width != 1:
        refuse(step, f"reads {list(x)}")
    return x._replace(channels=2 * step.channels * x.channels)


def selected(step: Step, inputs: Sizes) -> Size:
    """Of one row chosen for each image."""
    x = inputs["x"]
    if inputs["index"] != Size(x.images, 1, 1, 1):
        refuse(step, "has no index for each image")
    return Size(x.images, 1, 1, x.channels)


def concatenated(step: Step, inputs: Sizes) -> Size:
    """Of maps joined along their channels."""
    parts = [inputs[role] for role in sorted(inputs)]
    if any(part[:3] != parts[0][:3] for part in parts):
        refuse(step, f"joins {[list(part) for part in parts]}")
    return parts[0]._replace(channels=sum(part.channels for part in parts))


def stacked(step: Step, inputs: Sizes) -> Size:
    """Of maps joined along their images."""
    parts = [inputs[role] for role in sorted(inputs)]
    if any(part[1:] != parts[0][1:] for part in parts):
        refuse(step, f"stacks {[list(part) for part in parts]}")
    return parts[0]._replace(images=sum(part.images for part in parts))


def sliced(step: Step, inputs: Sizes) -> Size:
    """Of one of several parts along the images."""
    x = inputs["x"]
    if step.parts < 1 or x.images % step.parts or step.first >= step.parts:
        refuse(step, f"takes part {step.first} of {step.parts} of {x.images} images")
    return x._replace(images=x.images // step.parts)


def cut(step: Step, inputs: Sizes) -> Size:
    """Of some of the channels."""
    x, end = inputs["x"], step.first + step.channels
    if end > x.channels:
        refuse(step, f"takes channels {step.first} to {end} of {list(x)}")
    return x._replace(channels=step.channels)


def constant(step: Step, _: Sizes) -> Size:
    """Of the first rows of a table."""
    return Size(1, 1, step.first, step.channels)
