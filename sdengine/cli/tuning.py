"""`sdengine train KIND`: train what changes a checkpoint; options are made of each kind's list."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sdengine.cli import checkpoint_options as own
from sdengine.cli.terminal import ProgressBar, progress_bar, say, spinner
from sdengine.request.fields import Choice, FieldInfo, Flag, Integer, Number, field_infos
from sdengine.training.tuning.options import OPTIONS, Numbers, Texts

SUMMARIES = {
    "embedding": "Train a textual inversion: vectors that a name stands for in prompts.",
    "hypernetwork": "Train a hypernetwork: networks before keys and values, as web UIs have them.",
    "lora": "Train a LoRA, or a LoCon: low-rank additions to layers.",
    "dreambooth": "Train the U-Net on a subject, its class preserved.",
    "controlnet": "Train a ControlNet: a copy of the way down that hints steer.",
    "finetune": "Train the U-Net on pictures with captions.",
}


def tuning_command(kind: str) -> Callable[..., None]:
    """Return the command that trains a kind, with an option for each field of its options."""
    infos = field_infos(OPTIONS[kind])

    def command(
        checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or demo.")],
        data: Annotated[Path, typer.Option(help="Folder of pictures, with captions.")],
        output: Annotated[Path, typer.Option("-o", "--output", help="What is made of it.")],
        run: Annotated[
            Path | None,
            typer.Option(help="Folder of checkpoints, log and latents; OUTPUT.training."),
        ] = None,
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
        ] = False,
        variant: own.Variant = None,
        vae: own.Vae = None,
        prediction_type: own.PredictionType = None,
        **given: Any,
    ) -> None:
        values = {name: value for name, value in given.items() if value not in (None, [])}
        options = OPTIONS[kind](**values)
        with spinner("importing"):
            from sdengine.checkpoints import load_checkpoint
            from sdengine.models.torch_threads import keep_to_quota
            from sdengine.training.tuning.tune import tune

            keep_to_quota()

        source = load_checkpoint(
            checkpoint, variant=variant, vae=vae, prediction_type=prediction_type
        )
        with progress_bar(kind, remaining=True, stays=True) as bar:
            report = Report(kind, bar)
            tune(
                kind, source, data, output, options, run=run, resume=resume, progress=bar,
                report=report,
            )  # fmt: skip
        say(f"wrote {output}")

    signature = inspect.signature(command, eval_str=True)
    fixed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters = [*(p.replace(kind=p.KEYWORD_ONLY) for p in fixed), *_parameters(infos)]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = SUMMARIES[kind]
    return command


class Report:
    """Pass a loop's figures on to a progress bar."""

    def __init__(self, name: str, bar: ProgressBar) -> None:
        self.name = name
        self.bar = bar

    def __call__(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """Show a step."""
        shown = " ".join(f"{k} {v:.4f}" for k, v in figures.items())
        self.bar(self.name, step, steps, shown)


def _parameters(infos: dict[str, FieldInfo]) -> Iterator[inspect.Parameter]:
    for info in infos.values():
        name = f"--{(info.option or info.name).replace('_', '-')}"
        if isinstance(info.check, Flag) and info.default:
            name += f"/--no-{name.removeprefix('--')}"
        text = f"{info.help[0].upper()}{info.help[1:]}"
        notes = [info.check.range, _shown(info.default)]
        if told := "; ".join(note for note in notes if note):
            text += f" ({told})"
        kind = _kind(info)
        option = typer.Option(name, help=f"{text}.", metavar=_metavar(info))
        yield inspect.Parameter(
            info.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, option],
        )


def _shown(default: Any) -> str:
    if default is None or default is False or default == () or default == "":
        return ""
    if default is True:
        return "on"
    if isinstance(default, tuple):
        return ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def _kind(info: FieldInfo) -> Any:
    kinds: dict[type, Any] = {Integer: int, Number: float, Flag: bool, Texts: list[str]}
    return kinds.get(type(info.check), str)


def _metavar(info: FieldInfo) -> str | None:
    if isinstance(info.check, Choice):
        return "NAME"
    return "N,N,..." if isinstance(info.check, Numbers) else None
