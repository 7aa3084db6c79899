"""Split session: a U-Net's rows evaluated at the same time by two sessions, half by each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import Array, Module, Session
from sdengine.backends.device_protocols import inputs_zero_unless_given, rest_of, wraps_edges
from sdengine.backends.memory_budget import MemoryBudget
from sdengine.backends.split_worker import SplitWorker, do_at_once
from sdengine.bundle.controls import is_control
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import Shaped, TensorSpec
from sdengine.errors import ConfigError

_ROWS = "batch"  # the symbol of the rows in a manifest's shapes
Shapes = Mapping[str, tuple[int, ...]]
_Load = Callable[[Session, Shapes], Module]


@dataclass(frozen=True)
class Half:
    """Where one half of the rows is evaluated.

    Args:
        worker: whose thread does all that the session and its modules do.
        session: of the bundle.
    """

    worker: SplitWorker
    session: Session


class SplitModule:
    """One network whose rows are evaluated by modules for some of them each, at the same time.

    A network of one row has one module. See `sdengine.backends.base.Module`.

    Args:
        parts: workers with their modules, in the order of the rows.
        whole: names of inputs that have no rows and are read by all.
    """

    def __init__(
        self, parts: Sequence[tuple[SplitWorker, Module]], whole: frozenset[str] = frozenset()
    ) -> None:
        self._parts = parts
        self._whole = whole
        modules = [module for _, module in parts]
        inputs = zip(*(module.inputs for module in modules), strict=True)
        outputs = zip(*(module.outputs for module in modules), strict=True)
        self.inputs = tuple(_joined(specs, whole) for specs in inputs)
        self.outputs = tuple(_joined(specs, ()) for specs in outputs)
        self._results = {
            spec.name: np.empty([int(size) for size in spec.shape], np.float32)
            for spec in self.outputs
        }
        rows = [int(module.outputs[0].shape[0]) for module in modules]
        ends = np.cumsum([0, *rows]).tolist()
        self._rows = [slice(*pair) for pair in pairwise(ends)]

    def zero_unless_given(self) -> frozenset[str]:
        """Name the inputs that may be left out; see `device_protocols.FillsZeros`."""
        return inputs_zero_unless_given(self._parts[0][1])

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the outputs by name; other inputs must be given at their shapes.

        Raises:
            ConfigError: one is not given, or has another number of rows.
            SdengineError: a part failed; no part runs any more.
        """
        for spec in self.inputs:
            given = inputs.get(spec.name)
            if given is not None and given.shape != spec.shape:
                raise ConfigError(
                    f"input {spec.name!r} is {list(given.shape)}; this network was loaded for "
                    f"{list(spec.shape)}."
                )

        def job(module: Module, rows: slice) -> Callable[[], None]:
            own = {n: x if n in self._whole else x[rows] for n, x in inputs.items()}

            def run() -> None:
                for name, found in module.run(own).items():
                    np.copyto(self._results[name][rows], found)

            return run

        do_at_once(
            [
                (worker, job(module, rows))
                for (worker, module), rows in zip(self._parts, self._rows, strict=True)
            ]
        )
        return self._results

    def rest(self) -> object:
        """Return what its parts share with others; see `device_protocols.SharesItsRest`."""
        rests = [rest_of(module) for _, module in self._parts]
        return None if None in rests else tuple(rests)

    def close(self) -> None:
        """Free all parts; a second call does nothing."""
        for worker, module in self._parts:
            if worker.is_closed:
                module.close()
            else:  # a GPU's is freed by a thread that has it for its own
                do_at_once([(worker, module.close)])


class SplitSession:
    """One bundle whose U-Net and controls run in two halves; see `sdengine.backends.base.Session`.

    The first half of the rows, which with guidance are the unconditional ones, is evaluated by one
    session while the other one evaluates the second half. Of an odd number the first takes one
    more; a single row is evaluated by the first alone. All else is done by a session of its own.

    Args:
        bundle: that the sessions opened.
        main: does what is not split.
        halves: two; they may be the main session's too.
    """

    def __init__(self, bundle: Bundle, main: Session, halves: tuple[Half, Half]) -> None:
        self.precision: str = main.precision
        self.budget: MemoryBudget = main.budget
        self.max_chunks: int | None = main.max_chunks
        self.works_after_fork: bool = main.works_after_fork
        self._bundle = bundle
        self._main = main
        self._halves = halves
        self._is_closed = False

    def load(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet = PRISTINE,
    ) -> Module:
        """Load a network whole, or for its halves."""
        return self._load(network, shapes, lambda session, own: session.load(network, own, weights))

    def _load(self, network: str, shapes: Shapes, load: _Load) -> Module:
        entry = self._bundle.network(network)
        has_rows = {spec.name for spec in entry.inputs if _is_of_rows(spec)}
        is_split = has_rows and all(map(_is_of_rows, entry.outputs))
        if not is_split or not (network == "unet" or is_control(network)):
            return load(self._main, shapes)
        rows = min(shapes[name][0] for name in has_rows)
        counts = [count for count in ((rows + 1) // 2, rows // 2) if count]

        def of(count: int) -> Shapes:
            return {
                n: (count, *shape[1:]) if n in has_rows else shape for n, shape in shapes.items()
            }

        def job(half: Half, count: int) -> Callable[[], Module]:
            return lambda: load(half.session, of(count))

        chosen = list(zip(self._halves, counts, strict=False))
        modules = do_at_once([(half.worker, job(half, count)) for half, count in chosen])
        parts = [(half.worker, module) for (half, _), module in zip(chosen, modules, strict=True)]
        return SplitModule(parts, frozenset(shapes) - has_rows)

    def close(self) -> None:
        """Close all sessions and end the threads; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            do_at_once([(half.worker, half.session.close) for half in self._halves])
        finally:
            for half in self._halves:
                half.worker.close()
            self._main.close()


class WrappingSplitSession(SplitSession):
    """One whose sessions have networks with edges that meet; see `device_protocols.WrapsEdges`."""

    def load_wrapping(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet,
        axes: str,
    ) -> Module:
        """Load a network with edges that meet, whole or for its halves."""

        def load(session: Session, own: Shapes) -> Module:
            assert wraps_edges(session)
            return session.load_wrapping(network, own, weights, axes)

        return self._load(network, shapes, load)


def _is_of_rows(tensor: Shaped) -> bool:
    return bool(tensor.shape) and tensor.shape[0] == _ROWS


def _joined(specs: Sequence[TensorSpec], whole: frozenset[str] | tuple[()]) -> TensorSpec:
    """Return the spec of all rows of what parts describe for theirs."""
    first = specs[0]
    if first.name in whole:
        return first
    rows = sum(int(spec.shape[0]) for spec in specs)
    return TensorSpec(first.name, (rows, *first.shape[1:]), first.dtype)
