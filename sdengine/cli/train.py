"""``sdengine train``: make the demo model, in resumable stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

train_app = typer.Typer(
    help="Train the demo model: `vae`, then `base`, then `decoder`, then `save`.",
    no_args_is_help=True,
)

RunFolder = Annotated[Path, typer.Argument(help="Folder of the run; an interrupted run resumes.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.")]


@train_app.command("vae")
def train_vae(
    run: RunFolder,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 6000,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    threads: Threads = 0,
) -> None:
    """Train the autoencoder on rendered scenes."""
    from sdengine.training.loop import Schedule
    from sdengine.training.vae import VAETask, new_demo_vae, reconstruction_scores

    _use_threads(threads)
    schedule = Schedule(steps=steps, learning_rate=learning_rate, warmup=60)
    model = _train("vae", VAETask(new_demo_vae()), run / "vae", schedule)
    typer.echo(f"reconstruction of held-out scenes: {reconstruction_scores(model, 200)}")


@train_app.command("decoder")
def train_decoder(
    run: RunFolder,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 3000,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    threads: Threads = 0,
) -> None:
    """Go on with the decoder alone, on slightly noisy latents; the encoder stays as it is."""
    from sdengine.training.loop import Schedule, load_average
    from sdengine.training.vae import VAETask, new_demo_vae, reconstruction_scores

    _use_threads(threads)
    vae = new_demo_vae()
    load_average(run / "vae", vae)
    vae.requires_grad_(True)
    schedule = Schedule(steps=steps, learning_rate=learning_rate, warmup=60)
    model = _train("decoder", VAETask(vae, decoder_only=True), run / "decoder", schedule)
    typer.echo(f"reconstruction of held-out scenes: {reconstruction_scores(model, 200)}")


@train_app.command("base")
def train_base(
    run: RunFolder,
    text_steps: Annotated[int, typer.Option(help="Steps of the text encoder.")] = 2500,
    steps: Annotated[int, typer.Option(help="Steps of the U-Net.")] = 6000,
    batch: Annotated[int, typer.Option(help="Latents per step.")] = 48,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the U-Net.")] = 7e-4,
    latents: Annotated[int, typer.Option(help="Scenes to encode at 128 pixels.")] = 40_000,
    large_latents: Annotated[
        int, typer.Option(help="Scenes to encode at 192 pixels; half of it at 256.")
    ] = 2_400,
    threads: Threads = 0,
) -> None:
    """Train the text encoder and then the U-Net; needs a trained autoencoder in the run folder."""
    from sdengine.models.attention import set_attention_impl
    from sdengine.models.unet import UNet2DConditionModel
    from sdengine.training.latents import encode_scenes
    from sdengine.training.loop import Schedule, load_average
    from sdengine.training.unet import DEMO_UNET, UNetTask
    from sdengine.training.vae import new_demo_vae

    _use_threads(threads)
    vae = new_demo_vae()
    load_average(run / "vae", vae)
    text = _text_encoder(run, text_steps)
    sets = []
    for size, count, share in (
        (128, latents, 0.86),
        (192, large_latents, 0.08),
        (256, large_latents // 2, 0.06),
    ):
        with _bar(f"latents {size}") as update:
            path = run / "latents" / f"{size}.pt"
            sets.append((encode_scenes(vae, count, size, path, update), share))
    import torch

    torch.manual_seed(1)
    unet = UNet2DConditionModel(DEMO_UNET)
    set_attention_impl(unet, "plain")
    task = UNetTask(
        unet, text, vae, sets, scaling_factor=1 / sets[0][0].std, batch=batch
    )
    schedule = Schedule(
        steps=steps,
        learning_rate=learning_rate,
        warmup=150,
        weight_decay=0.01,
        ema_decay=0.999,
    )
    _train("unet", task, run / "unet", schedule)


@train_app.command("save")
def save(
    run: RunFolder,
    output: Annotated[Path, typer.Option("-o", "--output", help="New diffusers folder.")],
) -> None:
    """Write the trained networks as a diffusers folder of fp16 safetensors."""
    from sdengine.training.assemble import save_run

    save_run(run, output)
    typer.echo(f"wrote {output}")


def _text_encoder(run: Path, steps: int):  # type: ignore[no-untyped-def]
    from sdengine.training.assemble import new_caption_encoder
    from sdengine.training.loop import Schedule
    from sdengine.training.text import TextTask

    task = TextTask(new_caption_encoder())
    schedule = Schedule(steps=steps, learning_rate=1e-3, weight_decay=0.01)
    model = _train("text", task, run / "text", schedule)
    typer.echo(f"captions read right: {task.accuracy(model)}")
    return model["encoder"]


def _train(name: str, task, folder: Path, schedule):  # type: ignore[no-untyped-def]
    from sdengine.training.loop import train

    with _bar(name) as update:

        def report(step: int, steps: int, figures: dict[str, float]) -> None:
            update(step, steps, " ".join(f"{k} {v:.4f}" for k, v in figures.items()))

        return train(task, folder, schedule, report=report)


@contextmanager
def _bar(name: str) -> Iterator:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task(name, total=None, figures="")

        def update(done: int, total: int, figures: str = "") -> None:
            progress.update(bar, completed=done, total=total, figures=figures)

        yield update


def _use_threads(threads: int) -> None:
    if threads > 0:
        import torch

        torch.set_num_threads(threads)
