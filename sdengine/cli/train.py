"""`sdengine train`: train what changes a checkpoint; make the demo model, in resumable stages."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdengine.cli.terminal import ProgressBar, progress_bar, say, spinner
from sdengine.cli.tuning import SUMMARIES, Report, tuning_command

if TYPE_CHECKING:
    from torch import nn

    from sdengine.training.loop import Task
    from sdengine.training.schedule import Schedule

train_app = typer.Typer(
    help="Train what changes a checkpoint, from a folder of pictures: `embedding`, `hypernetwork`, "
    "`lora`, `dreambooth`, `controlnet`, `finetune`. The demo model: `vae`, `base`, `decoder`, "
    "then `save`; and what starts from it: `variant`.",
    no_args_is_help=True,
)

for _kind in SUMMARIES:
    train_app.command(_kind)(tuning_command(_kind))

RunFolder = Annotated[Path, typer.Argument(help="Folder of the run; an interrupted run resumes.")]
Threads = Annotated[
    int, typer.Option(help="CPU threads; 0 leaves the choice to torch, within a container's quota.")
]


@train_app.command("vae")
def train_vae(
    run: RunFolder,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 4500,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    threads: Threads = 0,
) -> None:
    """Train the autoencoder on rendered scenes."""
    with spinner("importing"):
        from sdengine.training.schedule import Schedule
        from sdengine.training.vae import VAETask, new_demo_vae, reconstruction_scores

    _use_threads(threads)
    schedule = Schedule(steps=steps, learning_rate=learning_rate, warmup=60)
    model = _train("vae", VAETask(new_demo_vae()), run / "vae", schedule)
    with spinner("scoring"):
        scores = reconstruction_scores(model, 200)
    say(f"reconstruction of held-out scenes: {scores}")


@train_app.command("decoder")
def train_decoder(
    run: RunFolder,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1600,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    threads: Threads = 0,
) -> None:
    """Go on with the decoder alone, on slightly noisy latents; the encoder stays as it is."""
    with spinner("importing"):
        from sdengine.training.loop import load_average
        from sdengine.training.schedule import Schedule
        from sdengine.training.vae import VAETask, new_demo_vae, reconstruction_scores

    _use_threads(threads)
    vae = new_demo_vae()
    load_average(run / "vae", vae)
    vae.requires_grad_(True)
    schedule = Schedule(steps=steps, learning_rate=learning_rate, warmup=60)
    model = _train("decoder", VAETask(vae, decoder_only=True), run / "decoder", schedule)
    with spinner("scoring"):
        scores = reconstruction_scores(model, 200)
    say(f"reconstruction of held-out scenes: {scores}")


@train_app.command("base")
def train_base(
    run: RunFolder,
    text_steps: Annotated[int, typer.Option(help="Steps of the text encoder.")] = 1600,
    steps: Annotated[int, typer.Option(help="Steps of the U-Net.")] = 3800,
    batch: Annotated[int, typer.Option(help="Latents per step and process.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the U-Net.")] = 8e-4,
    latents: Annotated[int, typer.Option(help="Scenes to encode at 128 pixels.")] = 40_000,
    large_latents: Annotated[
        int, typer.Option(help="Scenes to encode at 192 pixels; half of it at 256.")
    ] = 2_400,
    processes: Annotated[int, typer.Option(help="Processes that share the U-Net's steps.")] = 2,
    threads: Threads = 0,
) -> None:
    """Train the text encoder and then the U-Net; needs a trained autoencoder in the run folder."""
    with spinner("importing"):
        from sdengine.training.base import UNetJob, load_latents, train_text
        from sdengine.training.processes import run_processes

    _use_threads(threads)
    with _bar("text") as bar:
        say(f"captions read right: {train_text(run, text_steps, Report('text', bar))}")
    counts = {128: latents, 192: large_latents, 256: large_latents // 2}
    with _bar("latents") as bar:
        load_latents(run, counts, partial(bar, "latents"))
    job = UNetJob(run, counts, steps, learning_rate, batch, report=ConsoleReport("unet"))
    run_processes(processes, run / "unet", job)


@train_app.command("variant")
def train_variant(
    kind: Annotated[str, typer.Argument(help="inpainting, depth, controlnet or tiny.")],
    run: RunFolder,
    output: Annotated[Path, typer.Option("-o", "--output", help="New diffusers folder.")],
    base: Annotated[
        str, typer.Option(help="What `sdengine train save` wrote, to start from; or demo.")
    ] = "demo",
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step at 128 pixels.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    changes_only: Annotated[
        bool, typer.Option("--changes-only", help="Write one file of what differs from the base.")
    ] = False,
    threads: Threads = 0,
) -> None:
    """Train a variant of the demo model from its own weights, and write it."""
    with spinner("importing"):
        from sdengine.storage.whole_folder import check_place
        from sdengine.training.demo_parts import DemoParts
        from sdengine.training.schedule import Schedule
        from sdengine.training.variants import find_variant

    _use_threads(threads)
    variant = find_variant(kind)
    write = variant.writer(changes_only=changes_only)
    check_place(output, what="checkpoint")
    schedule = Schedule(
        steps=variant.steps if steps is None else steps,
        learning_rate=variant.learning_rate if learning_rate is None else learning_rate,
    )
    parts = DemoParts.load(base)
    task = variant.task(parts, variant.batch if batch is None else batch)
    model = _train(kind, task, run / kind, schedule)
    with spinner("writing"):
        write(model, parts, output)
    say(f"wrote {output}")


@train_app.command("save")
def save(
    run: RunFolder,
    output: Annotated[Path, typer.Option("-o", "--output", help="New diffusers folder.")],
    guidance_scale: Annotated[
        float, typer.Option("--guidance", help="Guidance scale of requests that name none.")
    ] = 3.0,
) -> None:
    """Write the trained networks as a diffusers folder of fp16 safetensors."""
    with spinner("writing"):
        from sdengine.training.assemble import save_run

        save_run(run, output, guidance_scale)
    say(f"wrote {output}")


def _train(name: str, task: Task, folder: Path, schedule: Schedule) -> nn.Module:
    from sdengine.training.loop import train

    with _bar(name) as bar:
        return train(task, folder, schedule, report=Report(name, bar))


def _bar(name: str) -> AbstractContextManager[ProgressBar]:
    return progress_bar(name, remaining=True, stays=True)


class ConsoleReport:
    """Show a loop's figures in a process of its own; the bar opens at the first step."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """Advance the bar, and close it at the last step."""
        if not hasattr(self, "report"):
            self.bar = _bar(self.name)
            self.report = Report(self.name, self.bar.__enter__())
        self.report(step, steps, figures)
        if step == steps:
            self.bar.__exit__(None, None, None)


def _use_threads(threads: int) -> None:
    if threads > 0:
        import torch

        torch.set_num_threads(threads)
    else:
        from sdengine.models.torch_threads import keep_to_quota

        keep_to_quota()
