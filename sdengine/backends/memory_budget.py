"""Memory budget: what each image size takes of a device's memory, and which sizes fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sdengine.bundle.tensors import size_name
from sdengine.errors import ConfigError, OutOfMemoryError

MAX_MEMORY_BYTES = 1 << 50


@dataclass(frozen=True)
class SizeNeeds:
    """Memory that one image size takes, in bytes.

    Args:
        width, height: of an image, in pixels.
        weight_bytes: by network.
        scratch_bytes: by network, the tensors between its nodes; networks run one after the other
            and share one block. None where it is not known before the engine is open.
        tensor_bytes: latents, inputs, outputs and pixels.
        arena_bytes: scratch and tensors as they overlap in the arena.
        graph_bytes: kept back for captured graphs.
        stage_weight_bytes: the weights of the stage that has most; text encoders are one stage.
        overhead_bytes: what was measured to be taken beside them, by execution contexts, kernels
            and graphs; 0 before anything has run.
    """

    width: int
    height: int
    weight_bytes: Mapping[str, int]
    scratch_bytes: Mapping[str, int | None]
    tensor_bytes: int
    arena_bytes: int
    graph_bytes: int
    stage_weight_bytes: int
    overhead_bytes: int = 0

    def planned_bytes(self, low_memory: bool) -> int:
        """Return every network's weights or, if freed after use, a stage's, and the arena."""
        weights = self.stage_weight_bytes if low_memory else sum(self.weight_bytes.values())
        return weights + self.arena_bytes

    def total_bytes(self, low_memory: bool) -> int:
        """Return all of it."""
        return self.planned_bytes(low_memory) + max(self.graph_bytes, self.overhead_bytes)

    @property
    def name(self) -> str:
        """The size as people write it."""
        return size_name((self.width, self.height))

    def described(self, low_memory: bool) -> str:
        """Say what it is made of."""
        known = {name: size for name, size in self.scratch_bytes.items() if size is not None}
        largest = max(known, key=lambda name: known[name], default="")
        weights = self.planned_bytes(low_memory) - self.arena_bytes
        scratch = f"{_size(known[largest])} of scratch ({largest})" if known else "scratch"
        parts = [
            f"{_size(weights)} of weights",
            scratch,
            f"{_size(self.tensor_bytes)} of latents, inputs and images",
        ]
        if self.overhead_bytes > self.graph_bytes:
            taken = _size(self.overhead_bytes)
            parts.append(f"and {taken} that contexts, kernels and graphs were measured to take")
        elif self.graph_bytes:
            parts.append(f"and {_size(self.graph_bytes)} kept for captured graphs")
        return f"{self.name} takes {_size(self.total_bytes(low_memory))}: {', '.join(parts)}"


class MemoryBudget:
    """The bytes that an engine may take, and which image sizes fit into them.

    Args:
        needs: of every size, or nothing where the memory is not the engine's to plan.
        available_bytes: what may be taken.
        source: where that number is from, for messages.
        low_memory: each network's weights are freed once a request is done with them.
    """

    # The most shapes of a network that stay loaded.
    most_shapes = 3
    # What takes less, in messages.
    smaller = "a bundle built with smaller --resolutions, a smaller --batch or fp16"

    def __init__(
        self,
        needs: Sequence[SizeNeeds] = (),
        available_bytes: int = 0,
        source: str = "",
        low_memory: bool = False,
    ) -> None:
        self.available_bytes = available_bytes
        self.source = source
        self.low_memory = low_memory
        self.update(needs)

    def update(self, needs: Sequence[SizeNeeds]) -> None:
        """Take other figures, such as those of the engines once they are open.

        Raises:
            OutOfMemoryError: no size fits.
        """
        self.needs = tuple(needs)
        if self.needs and not self.fitting():
            raise self._error(min(self.needs, key=lambda size: size.total_bytes(self.low_memory)))

    def fitting(self, low_memory: bool | None = None) -> list[SizeNeeds]:
        """Return the sizes that fit, as things are or with another `low_memory`."""
        low = self.low_memory if low_memory is None else low_memory
        return [size for size in self.needs if size.total_bytes(low) <= self.available_bytes]

    def check(
        self,
        width: int,
        height: int,
        more: Collection[str] = (),
        tile: tuple[int, int] | None = None,
    ) -> None:
        """Refuse an image size that does not fit.

        Args:
            width, height: in pixels.
            more: networks that the request runs beside those that every request runs.
            tile: width and height that the U-Net runs at, and the VAE where it cannot do otherwise;
                None for the image's own.

        Raises:
            OutOfMemoryError: it does not; the message has the figures and what would help.
        """
        for size in self.needs:
            if (size.width, size.height) == (tile or (width, height)):
                self.require(size)

    def has_room(self, network: str, loaded: int) -> bool:
        """Say whether another shape of a network may be loaded beside those that are."""
        return loaded < self.most_shapes

    def require(self, size: SizeNeeds) -> None:
        """Refuse a size whose needs are known, as `check` does."""
        if size.total_bytes(self.low_memory) > self.available_bytes:
            raise self._error(size)

    def _error(self, size: SizeNeeds) -> OutOfMemoryError:
        ways = []
        if not self.low_memory and size.total_bytes(True) <= self.available_bytes:
            ways.append(f"low_memory=True (--low-memory), {_size(size.total_bytes(True))}")
        others = [other.name for other in self.fitting()]
        if others:
            ways.append(f"a size of {', '.join(others)}")
        ways.append(self.smaller)
        return OutOfMemoryError(
            f"memory: {size.described(self.low_memory)}; {_size(self.available_bytes)} may be used "
            f"({self.source}). What fits or takes less: {'; '.join(ways)}."
        )


def check_memory_bytes(memory_bytes: int | None) -> None:
    """Refuse what is no limit to memory.

    Raises:
        ConfigError: it is neither None nor a number of bytes.
    """
    if memory_bytes is not None and not (
        type(memory_bytes) is int and 0 < memory_bytes < MAX_MEMORY_BYTES
    ):
        raise ConfigError.for_field(
            "memory_bytes", memory_bytes, f"a number of bytes from 1 to {MAX_MEMORY_BYTES}, or None"
        )


def unplanned_budget(backend: str, memory_bytes: int | None) -> MemoryBudget:
    """Return the budget of a backend whose networks take memory as they need it.

    Args:
        backend: its name.
        memory_bytes: the limit that was asked for.

    Raises:
        ConfigError: there is a limit, which it would not keep to.
    """
    check_memory_bytes(memory_bytes)
    if memory_bytes is not None:
        raise ConfigError.for_field(
            "memory_bytes",
            memory_bytes,
            f"None with backend {backend}, whose networks take the machine's memory as they need "
            "it",
            "Bundles for a GPU and those of target native keep to a limit.",
        )
    return MemoryBudget()


def _size(size_bytes: int) -> str:
    if size_bytes < 10**8:
        return f"{size_bytes / 1e6:.3g} MB"
    return f"{size_bytes / 1e9:.3g} GB"
