"""Schedule of a training: steps, learning rates, the optimiser and its settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdengine.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    import torch

OPTIMISERS = ("adamw", "adamw8bit", "adafactor", "sgd")
DECAYS = ("cosine", "linear", "constant", "cosine_with_restarts")


@dataclass(frozen=True)
class Schedule:
    """Set how a training goes; a run that goes on must be given the same.

    Args:
        steps: of the optimiser.
        learning_rate: the largest.
        warmup: steps in which the learning rate rises to it.
        weight_decay: of the optimiser.
        ema_decay: most of the moving average that a step keeps; 0 for no average.
        final_fraction: of the learning rate that is left at the end.
        seed: of every batch.
        decay: how the learning rate falls, one of DECAYS.
        restarts: times that "cosine_with_restarts" begins.
        optimiser: one of OPTIMISERS.
        beta2: of AdamW.
        max_grad_norm: what gradients are clipped to.
        accumulation: batches whose gradients make one step.
        scale_loss: multiply the loss by what gradients in fp16 need, which is found on the way.

    Raises:
        ConfigError: a value cannot train; the message names it.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 1e-4
    ema_decay: float = 0.998
    final_fraction: float = 0.02
    seed: int = 0
    decay: str = "cosine"
    restarts: int = 1
    optimiser: str = "adamw"
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    accumulation: int = 1
    scale_loss: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for field, low in (("steps", 1), ("warmup", 0), ("restarts", 1), ("accumulation", 1)):
            value = getattr(self, field)
            if type(value) is not int or value < low:
                raise ConfigError.for_field(field, value, f"an integer of at least {low}")
        if not 0 < self.learning_rate <= 10:
            raise ConfigError.for_field("learning_rate", self.learning_rate, "a number in (0, 10]")
        for field in ("weight_decay", "ema_decay", "final_fraction", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError.for_field(field, getattr(self, field), "a number in [0, 1)")
        if not 0 < self.max_grad_norm < math.inf:
            raise ConfigError.for_field("max_grad_norm", self.max_grad_norm, "a number above 0")
        for field, accepted in (("decay", DECAYS), ("optimiser", OPTIMISERS)):
            if getattr(self, field) not in accepted:
                raise ConfigError.for_field(field, getattr(self, field), ", ".join(accepted))
        if self.restarts > 1 and self.decay != "cosine_with_restarts":
            raise ConfigError.for_field(
                "restarts", self.restarts, f"1 with the decay {self.decay}, which has none"
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        done = step / self.steps
        if self.decay == "constant":
            left = 1.0
        elif self.decay == "linear":
            left = 1 - done
        else:
            left = 0.5 * (1 + math.cos(math.pi * (self.restarts * done % 1)))
        kept = 1.0 if self.decay == "constant" else self.final_fraction
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.learning_rate * rising * (kept + (1 - kept) * left)

    def average_decay(self, step: int) -> float:
        """Return how much of the moving average a step keeps: little at first."""
        return min(self.ema_decay, (1 + step) / (10 + step))

    def make_optimiser(self, params: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
        """Make the optimiser of parameters.

        Raises:
            BackendUnavailableError: it needs a package that is not installed.
        """
        import torch

        options: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimiser == "sgd":
            return torch.optim.SGD(params, momentum=0.9, **options)
        if self.optimiser == "adafactor":
            return torch.optim.Adafactor(params, **options)
        betas = (0.9, self.beta2)
        if self.optimiser == "adamw":
            return torch.optim.AdamW(params, betas=betas, fused=True, **options)
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise BackendUnavailableError(
                "optimiser adamw8bit needs bitsandbytes, which is not installed. Install it, "
                "pip install bitsandbytes, or take the optimiser adamw."
            ) from None
        made: torch.optim.Optimizer = AdamW8bit(params, betas=betas, **options)
        return made
