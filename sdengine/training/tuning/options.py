"""Options of a tuning: a list of fields for each kind, of which the command's are made."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs.embeddings import MAX_VECTORS, name_fault
from sdengine.inputs.hypernetworks import ACTIVATIONS
from sdengine.request.fields import Choice, Flag, Integer, Name, Number, Text, about, field_infos
from sdengine.request.preprocessors import PREPROCESSORS
from sdengine.training.schedule import DECAYS, OPTIMISERS, Schedule
from sdengine.training.tuning.pictures import templates_of

_RATE = Number(1e-12, 10)
_MOST_STEPS = 10_000_000
_MOST_TEXTS = 64
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16", "fp16")
# What of a U-Net a LoRA changes: patterns of its layers' names.
TARGETS: Mapping[str, re.Pattern[str]] = MappingProxyType({
    "cross-attention": re.compile(r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)"),
    "attention": re.compile(r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"),
    "transformer": re.compile(r".*\battentions\.\d+\..*"),
})  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """Texts of a few, given one by one."""

    accepted: str = f"up to {_MOST_TEXTS} texts"
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[str, ...]:
        """Return a tuple of texts."""
        if not isinstance(value, (list, tuple)) or len(value) > _MOST_TEXTS:
            raise ConfigError.for_field(name, value, self.accepted)
        return tuple(Text(10_000)(name, one) for one in value)


@dataclass(frozen=True)
class Numbers:
    """Numbers separated by commas, or a sequence of them."""

    whole: bool = False
    accepted: str = "numbers above 0, separated by commas"
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[float, ...]:
        """Return a tuple of numbers."""
        kind = int if self.whole else float
        try:
            parts = [p for p in value.split(",") if p.strip()] if isinstance(value, str) else value
            found = tuple(kind(part) for part in parts)
        except (TypeError, ValueError):
            raise ConfigError.for_field(name, value, self.accepted) from None
        if len(found) > _MOST_TEXTS or not all(0 < one < 1 << 16 for one in found):
            raise ConfigError.for_field(name, value, self.accepted)
        return found


def _field(default: Any, check: Any, help: str, option: str = "") -> Any:
    return dataclasses.field(default=default, metadata=about(check, help, option=option))


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """Options that every kind of training has; constructing them checks every field.

    Raises:
        ConfigError: a field has the wrong type or is out of range; the message names it.
    """

    steps: int = _field(1000, Integer(1, _MOST_STEPS), "steps of the optimiser")
    learning_rate: float = _field(1e-4, _RATE, "largest learning rate")
    batch: int = _field(1, Integer(1, 4096), "pictures of a batch")
    accumulation: int = _field(1, Integer(1, 4096), "batches whose gradients make one step")
    decay: str = _field("constant", Choice(DECAYS), "how the learning rate falls")
    restarts: int = _field(1, Integer(1, 1000), "times that cosine_with_restarts begins")
    warmup: int = _field(0, Integer(0, _MOST_STEPS), "steps in which the learning rate rises")
    optimiser: str = _field("adamw", Choice(OPTIMISERS), "what applies gradients")
    weight_decay: float = _field(0.01, Number(0, 0.999), "of the optimiser")
    max_grad_norm: float = _field(1.0, Number(1e-6, 1e6), "what gradients are clipped to")
    ema_decay: float = _field(0.0, Number(0, 0.999999), "of a moving average of what is trained; "
                              "0 for none")  # fmt: skip
    min_snr: float = _field(0.0, Number(0, 1000), "signal-to-noise ratio from which on losses "
                            "count less, 5 in its paper; 0 for none")  # fmt: skip
    noise_offset: float = _field(0.0, Number(0, 1), "deviation of what is added to the noise of a "
                                 "whole channel")  # fmt: skip
    resolution: int | None = _field(None, Integer(8, 8192), "side of the square whose area "
                                    "pictures get; the model's own if not given")  # fmt: skip
    buckets: bool = _field(True, Flag(), "let pictures keep about their shape; else all become "
                           "squares")  # fmt: skip
    mirror: bool = _field(False, Flag(), "show half of the pictures mirrored")
    repeats: int = _field(1, Integer(1, 10_000), "times that an epoch shows each picture")
    templates: tuple[str, ...] = _field((), Texts(), "caption with {name} and {caption}; or "
                                        "object, or style, for a few", "template")  # fmt: skip
    dropout: float = _field(0.0, Number(0, 1), "share of captions that are left out",
                            "caption_dropout")  # fmt: skip
    precision: str = _field("fp32", Choice(PRECISIONS), "what is computed in; what is trained is "
                            "held in fp32")  # fmt: skip
    device: str = _field("auto", Choice(DEVICES), "where")
    gradient_checkpointing: bool = _field(False, Flag(), "compute activations again instead of "
                                          "keeping them")  # fmt: skip
    seed: int = _field(0, Integer(0, 2**31 - 1), "of everything that is drawn")
    save_every: int = _field(500, Integer(1, _MOST_STEPS), "steps between checkpoints")
    keep: int = _field(2, Integer(1, 1000), "checkpoints that are kept")
    sample: tuple[str, ...] = _field((), Texts(), "prompt of a sample sheet; may be given again")
    sample_every: int = _field(500, Integer(1, _MOST_STEPS), "steps between sample sheets")

    def __post_init__(self) -> None:
        """Check every field, and what does not go together."""
        for info in field_infos(type(self)).values():
            object.__setattr__(self, info.name, info.checked(getattr(self, info.name)))
        object.__setattr__(self, "templates", templates_of(self.templates))
        if self.precision == "fp16" and self.optimiser == "adafactor":
            raise ConfigError.for_field(
                "optimiser", self.optimiser, "another one with fp16, whose loss is scaled"
            )
        if self.restarts > 1 and self.decay != "cosine_with_restarts":
            raise ConfigError.for_field("restarts", self.restarts, f"1 with the decay {self.decay}")
        if not self.sample and self.sample_every != _default(type(self), "sample_every"):
            raise ConfigError.for_field("sample_every", self.sample_every, "--sample beside it")

    def schedule(self) -> Schedule:
        """Return what the loop is told."""
        return Schedule(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            ema_decay=self.ema_decay,
            final_fraction=0.0,
            seed=self.seed,
            decay=self.decay,
            restarts=self.restarts,
            optimiser=self.optimiser,
            beta2=0.999,
            max_grad_norm=self.max_grad_norm,
            accumulation=self.accumulation,
            scale_loss=self.precision == "fp16",
        )

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a run to go on, as JSON has it, but the schedule."""
        free = {"save_every", "keep", "sample", "sample_every", "device"}
        values = {k: v for k, v in vars(self).items() if k not in free}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _default(cls: type, name: str) -> Any:
    return field_infos(cls)[name].default


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(TuningOptions):
    """Options of a textual inversion."""

    learning_rate: float = _field(5e-3, _RATE, "largest learning rate")
    weight_decay: float = _field(0.0, Number(0, 0.999), "of the optimiser")
    templates: tuple[str, ...] = _field(("object",), Texts(), "caption that names it, as {name}; "
                                        "or object, or style, for a few", "template")  # fmt: skip
    name: str = _field("", Text(200), "what prompts call it; the output's name if not given")
    vectors: int = _field(1, Integer(1, MAX_VECTORS), "places of a prompt that it takes")
    initial: str = _field("*", Text(1000), "text whose tokens it begins as; means of them "
                          "where they are more than the vectors")  # fmt: skip

    def __post_init__(self) -> None:
        """Check the name too."""
        super().__post_init__()
        if self.name and (fault := name_fault(self.name)):
            raise ConfigError(f"name: {self.name[:60]!r}: {fault}.")
        if not all("{name}" in one or "{caption}" in one for one in self.templates):
            raise ConfigError.for_field(
                "template",
                list(self.templates),
                "captions that hold {name} or {caption}",
            )


@dataclass(frozen=True, kw_only=True)
class LoraOptions(TuningOptions):
    """Options of a LoRA."""

    rank: int = _field(16, Integer(1, 4096), "of what is added to linear layers")
    alpha: float | None = _field(None, Number(1e-6, 1e6), "which divided by the rank scales it; "
                                 "the rank if not given")  # fmt: skip
    targets: str = _field("transformer", Choice(tuple(TARGETS)), "layers of the U-Net")
    conv_rank: int = _field(0, Integer(0, 4096), "of convolutions, which makes it a LoCon; 0 "
                            "leaves them alone")  # fmt: skip
    conv_alpha: float | None = _field(None, Number(1e-6, 1e6), "of convolutions; conv_rank if not "
                                      "given")  # fmt: skip
    text_encoder: bool = _field(False, Flag(), "change the text encoders' layers too")
    names: str = _field("kohya", Choice(("kohya", "diffusers")), "whose names the file has")
    save_precision: str = _field("fp32", Choice(PRECISIONS), "of the file")

    def __post_init__(self) -> None:
        """Refuse a scale of what there is not."""
        super().__post_init__()
        if self.conv_alpha is not None and not self.conv_rank:
            raise ConfigError.for_field("conv_alpha", self.conv_alpha, "--conv-rank beside it")


@dataclass(frozen=True, kw_only=True)
class HypernetworkOptions(TuningOptions):
    """Options of a hypernetwork."""

    learning_rate: float = _field(1e-5, _RATE, "largest learning rate")
    structure: tuple[float, ...] = _field((1.0, 2.0, 1.0), Numbers(), "layers' sizes as factors "
                                          "of the width")  # fmt: skip
    activation: str = _field("linear", Choice(tuple(ACTIVATIONS)), "of the layers")
    layer_norm: bool = _field(False, Flag(), "normalise behind every layer")
    activate_output: bool = _field(False, Flag(), "let the last layer have an activation too")
    hidden_dropout: float = _field(0.0, Number(0, 0.9), "of layers between first and last")
    widths: tuple[int, ...] = _field((), Numbers(whole=True), "of contexts; all that the U-Net "
                                     "has if not given")  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse an activation without effect."""
        super().__post_init__()
        if self.activate_output and self.activation == "linear":
            raise ConfigError.for_field(
                "activate_output", True, "an --activation beside it; linear is none"
            )


@dataclass(frozen=True, kw_only=True)
class WholeOptions(TuningOptions):
    """Options of fine-tuning whole networks."""

    learning_rate: float = _field(1e-5, _RATE, "largest learning rate")
    dropout: float = _field(0.1, Number(0, 1), "share of captions that are left out",
                            "caption_dropout")  # fmt: skip
    text_encoder: bool = _field(False, Flag(), "train the text encoders too, but their tables")
    save_precision: str = _field("fp16", Choice(PRECISIONS), "of the files")


@dataclass(frozen=True, kw_only=True)
class DreamBoothOptions(WholeOptions):
    """Options of DreamBooth."""

    learning_rate: float = _field(2e-6, _RATE, "largest learning rate")
    dropout: float = _field(0.0, Number(0, 1), "share of captions that are left out",
                            "caption_dropout")  # fmt: skip
    class_prompt: str = _field("", Text(10_000), "of what the subject is one of, such as 'a dog'; "
                               "its pictures preserve the prior")  # fmt: skip
    class_folder: str | None = _field(None, Name("a folder"), "where its pictures are, perhaps "
                                      "with captions of their own; the run's folder if not "
                                      "given")  # fmt: skip
    class_pictures: int = _field(100, Integer(1, 100_000), "how many there shall be; those that "
                                 "lack are made by the untouched model")  # fmt: skip
    prior_weight: float = _field(1.0, Number(0, 100), "what their loss counts")

    def __post_init__(self) -> None:
        """Refuse what has no effect without a class."""
        super().__post_init__()
        own = {"class_folder": None, "class_pictures": 100, "prior_weight": 1.0}
        for name, default in own.items():
            if not self.class_prompt and getattr(self, name) != default:
                raise ConfigError.for_field(name, getattr(self, name), "--class-prompt beside it")


@dataclass(frozen=True, kw_only=True)
class ControlOptions(TuningOptions):
    """Options of a ControlNet."""

    learning_rate: float = _field(1e-5, _RATE, "largest learning rate")
    dropout: float = _field(0.5, Number(0, 1), "share of captions that are left out",
                            "caption_dropout")  # fmt: skip
    hints: str | None = _field(None, Name("a folder"), "folder with a hint for each picture, of "
                               "the same name")  # fmt: skip
    preprocessor: str = _field("", Choice(("", *PREPROCESSORS)), "makes the hint of each picture")
    save_precision: str = _field("fp16", Choice(PRECISIONS), "of the files")

    def __post_init__(self) -> None:
        """Refuse two sources of hints."""
        super().__post_init__()
        if self.hints and self.preprocessor:
            raise ConfigError.for_field("preprocessor", self.preprocessor, "no --hints beside it")


OPTIONS: Mapping[str, type[TuningOptions]] = MappingProxyType({
    "embedding": EmbeddingOptions,
    "hypernetwork": HypernetworkOptions,
    "lora": LoraOptions,
    "dreambooth": DreamBoothOptions,
    "controlnet": ControlOptions,
    "finetune": WholeOptions,
})  # fmt: skip
