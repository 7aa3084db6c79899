"""Calibration run: prompts made into pictures by the native CPU backend, and what its U-Net read.

Nothing is decoded: a request ends once the last of the evaluations that are kept has begun.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import DEFAULTS, Module, Session, SessionOptions
from sdengine.backends.device_protocols import inputs_zero_unless_given
from sdengine.backends.native.backend import NativeBackend
from sdengine.bundle.reader import Bundle
from sdengine.engine import Engine

Array = NDArray[Any]
Inputs = Mapping[str, Array]
# Steps of each picture, if the checkpoint's own default is not fewer.
MOST_STEPS = 8


@dataclass(frozen=True)
class Recording:
    """One request, and the evaluations of the U-Net whose inputs are kept.

    Args:
        prompt: the text.
        seed: of its noise.
        evaluations: which are kept, counted from 0.
    """

    prompt: str
    seed: int
    evaluations: Collection[int]


class UNetBackend(NativeBackend):
    """The native backend with something else around, or in the place of, its U-Net.

    Args:
        replace: given the U-Net, returns what runs.
    """

    def __init__(self, replace: Callable[[Module], Module]) -> None:
        self._replace = replace

    def open(self, bundle: Bundle, options: SessionOptions = DEFAULTS) -> Session:
        """Make a session whose U-Net is replaced."""
        return _UNetSession(super().open(bundle, options), self._replace)


class _UNetSession:
    max_chunks: int | None = None
    works_after_fork = False

    def __init__(self, session: Session, replace: Callable[[Module], Module]) -> None:
        self.precision, self.budget = session.precision, session.budget
        self._session, self._replace = session, replace

    def load(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet = PRISTINE,
    ) -> Module:
        module = self._session.load(network, shapes, weights)
        return self._replace(module) if network == "unet" else module

    def close(self) -> None:
        self._session.close()


class _EnoughError(Exception):
    """End a request whose remaining steps nobody needs."""


class _Recorder:
    """Keep copies of what a U-Net reads at some evaluations of a request.

    Args:
        kept: of the request that was begun last.
    """

    def __init__(self) -> None:
        self.kept: list[Inputs] = []
        self._wanted: Collection[int] = ()
        self._evaluation = 0

    def begin(self, evaluations: Collection[int]) -> None:
        """Forget the last request, and keep these evaluations of the next."""
        self.kept, self._wanted, self._evaluation = [], evaluations, 0

    def around(self, unet: Module) -> Module:
        """Return a U-Net whose inputs are seen here."""
        return _SeenUNet(unet, self.see)

    def see(self, inputs: Inputs) -> None:
        """Take the inputs of the next evaluation; end the request with the last that is kept."""
        if self._evaluation in self._wanted:
            self.kept.append({name: values.copy() for name, values in inputs.items()})
        if self._evaluation >= max(self._wanted):
            raise _EnoughError
        self._evaluation += 1


class _SeenUNet:
    def __init__(self, unet: Module, see: Callable[[Inputs], None]) -> None:
        self.inputs, self.outputs = unet.inputs, unet.outputs
        self._unet, self._see = unet, see

    def zero_unless_given(self) -> frozenset[str]:
        return inputs_zero_unless_given(self._unet)

    def run(self, inputs: Inputs) -> Mapping[str, Array]:
        self._see(inputs)
        return self._unet.run(inputs)

    def close(self) -> None:
        self._unet.close()


def record(
    bundle: Bundle,
    recordings: Sequence[Recording],
    size: tuple[int, int],
    cancel: threading.Event | None = None,
) -> list[list[Inputs]]:
    """Run requests and return what the U-Net read, by request, in the order of the evaluations.

    Args:
        bundle: of target native, with text encoders and U-Net.
        recordings: the requests.
        size: width and height in pixels.
        cancel: once set, the run ends.

    Raises:
        ConfigError: a prompt is not accepted.
        Cancelled: `cancel` was set.
    """
    recorder = _Recorder()
    found = []
    with Engine(bundle, UNetBackend(recorder.around)) as engine:
        for recording in recordings:
            recorder.begin(recording.evaluations)
            steps = engine.stream(
                recording.prompt,
                width=size[0],
                height=size[1],
                seed=recording.seed,
                steps=usual_steps(bundle),
                cancel=cancel,
            )
            with contextlib.suppress(_EnoughError):
                for _ in steps:
                    pass
            found.append(recorder.kept)
    return found


def usual_steps(bundle: Bundle) -> int:
    """Return how many steps a request of a calibration has."""
    return min(bundle.manifest.defaults.steps, MOST_STEPS)
