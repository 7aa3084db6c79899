"""Tuning, from a checkpoint and a folder of pictures to the file or folder of what was trained."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdengine.adapters.named_files import RUN_ENDING
from sdengine.checkpoints import Checkpoint, load_checkpoint, save_network
from sdengine.errors import ConfigError, OutputError
from sdengine.models.controlnet import ControlNetModel
from sdengine.request.control import Control
from sdengine.storage.whole_folder import check_place
from sdengine.training.loop import Report, train
from sdengine.training.processes import this_process
from sdengine.training.run_folder import RunFolder
from sdengine.training.tuning.dataset import Arrangement, Dataset
from sdengine.training.tuning.files import check_ending
from sdengine.training.tuning.kinds import CONTROL, PREPARE, Prepared, trained_networks
from sdengine.training.tuning.latent_cache import LatentCache
from sdengine.training.tuning.live_engine import LiveEngine, make_class_pictures, own_pictures
from sdengine.training.tuning.networks import Networks, check_trainable, recompute
from sdengine.training.tuning.options import (
    OPTIONS,
    ControlOptions,
    DreamBoothOptions,
    EmbeddingOptions,
    TuningOptions,
)
from sdengine.training.tuning.pictures import Example, check_captions, find_examples
from sdengine.training.tuning.task import Sheet

# Called with what is going on, how far it is and how far it goes.
Progress = Callable[[str, int, int], None]
_FINEST_STEP = 64  # between the sides of buckets, where the model's own is smaller


def tune(
    kind: str,
    checkpoint: str | Path | Checkpoint,
    data: Path,
    output: Path,
    options: TuningOptions,
    *,
    run: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Path:
    """Train what changes a checkpoint, and write it.

    Args:
        kind: one of OPTIONS.
        checkpoint: of Stable Diffusion 1, 2 or XL: what `load_checkpoint` opens, or opened.
        data: folder of pictures, see `find_examples`.
        output: the new file or folder.
        options: of the kind.
        run: folder of what is kept meanwhile: checkpoints, log, latents; None is the output's name
            and ".training" beside it.
        resume: go on from the run's last checkpoint; without it a run is never touched.
        progress: called while pictures are encoded or made.
        report: called after each step, see `train`.

    Returns:
        The output.

    Raises:
        ConfigError: an option, the data or the checkpoint is not accepted.
        CheckpointError: the checkpoint is damaged, or the run was made with other settings.
        OutputError: the output's place is taken, or a run is there that shall not go on.
        TrainingError: the loss was lost; checkpoints are kept.
    """
    if kind not in OPTIONS or type(options) is not OPTIONS[kind]:
        raise ConfigError.for_field("kind", kind, f"one of {', '.join(OPTIONS)}, and its options")
    run = output.with_name(f"{output.name}{RUN_ENDING}") if run is None else run
    _check_places(kind, output, run, resume=resume)
    source = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    check_trainable(source)
    hints = options.hints if isinstance(options, ControlOptions) else None
    examples = find_examples(data, None if hints is None else Path(hints))
    check_captions(examples, options.templates)
    _check_hints(options, examples)
    process = this_process(cpu=options.device == "cpu")
    if options.device == "cuda" and process.device.type != "cuda":
        raise ConfigError.for_field("device", "cuda", "cpu: torch finds no GPU here")
    networks = Networks.load(
        source,
        precision=options.precision,
        device=process.device,
        trained=trained_networks(options, tuple(source.text_encoder_configs)),
    )
    is_new = not run.exists()
    work = _Work(kind, options, networks, output, run, progress or (lambda *_: None))
    try:
        with process.main_process_first():  # which fills the caches that the others read
            task, identity = work.prepare(examples)
    except ConfigError:
        if is_new and process.is_main_process:  # what was refused leaves nothing
            shutil.rmtree(run, ignore_errors=True)
        raise
    train(
        task,
        run,
        options.schedule(),
        save_every=options.save_every,
        sheet_every=options.sample_every,
        keep=options.keep,
        identity=identity,
        report=report,
    )
    if process.is_main_process:
        work.save(task.dataset)
    process.wait_for_everyone()
    return output


def _check_places(kind: str, output: Path, run: Path, *, resume: bool) -> None:
    check_ending(kind, output)
    check_place(output, what=kind)
    if run == output or not run.parent.is_dir():
        raise ConfigError.for_field("run", str(run), "a new folder in one that exists")
    if RunFolder(run).checkpoints() and not resume:
        raise OutputError(
            f"{str(run)!r} holds a run. Go on with it by --resume, or name another folder by --run."
        )


def _check_hints(options: TuningOptions, examples: list[Example]) -> None:
    """Refuse a ControlNet's data without hints."""
    if not isinstance(options, ControlOptions):
        return
    lacking = [one.path.name for one in examples if one.hint is None]
    if options.preprocessor and len(lacking) < len(examples):
        raise ConfigError.for_field(
            "preprocessor", options.preprocessor, "no hints in the data's table beside it"
        )
    if lacking and not options.preprocessor:
        raise ConfigError(
            f"hints: {lacking[0]!r} has none. Give a folder with one for each picture (--hints), "
            "name them in metadata.jsonl as conditioning_image, or make them (--preprocessor)."
        )


class _Work:
    """Put together what is trained, and write it in the end."""

    def __init__(
        self,
        kind: str,
        options: TuningOptions,
        networks: Networks,
        output: Path,
        run: Path,
        progress: Progress,
    ) -> None:
        self.kind, self.options, self.networks = kind, options, networks
        self.output, self.run, self.progress = output, run, progress
        self.resolution = options.resolution or networks.own_resolution
        step = networks.size_multiple
        if self.resolution % step:
            raise ConfigError.for_field(
                "resolution", self.resolution, f"a multiple of {step} for this model"
            )
        run.mkdir(exist_ok=True)
        sha256 = networks.checkpoint.part_sha256("vae")
        self.cache = LatentCache(run / "latents", networks.vae, sha256)
        self.prepared: Prepared

    def prepare(self, examples: list[Example]) -> tuple[Any, dict[str, Any]]:
        """Return the task, and what must be the same for its run to go on."""
        options = self.options
        dataset = self._dataset(examples, self._arrangement(), "pictures")
        more: dict[str, Any] = {}
        if isinstance(options, DreamBoothOptions) and options.class_prompt:
            more["class_dataset"] = self._class_dataset(options)
            more["prior_weight"] = options.prior_weight
        torch.manual_seed(options.seed)
        self.prepared = PREPARE[self.kind](self.networks, options, self.output)
        if self.prepared.embedding is not None:
            self.prepared.texts.check(sorted(dataset.captions))
        if options.gradient_checkpointing:
            for network in (self.networks.unet, self.prepared.model):
                recompute(network)
        task = self.prepared.task(
            self.networks,
            self.prepared.texts,
            dataset,
            self.prepared.model,
            noise_offset=options.noise_offset,
            min_snr=options.min_snr,
            sheet=self._sheet(dataset) if options.sample else None,
            **more,
        )
        sets = [dataset, *([more["class_dataset"]] if "class_dataset" in more else [])]
        identity = {
            "kind": self.kind,
            "checkpoint": self.networks.checkpoint.sha256,
            "data": _digest(sets),
            **options.identity(),
            "resolution": self.resolution,
        }
        return task, identity

    def save(self, dataset: Dataset) -> None:
        """Write what was trained."""
        about = {
            "ss_learning_rate": f"{self.options.learning_rate:g}",
            "ss_num_train_images": str(len(dataset.items)),
            "ss_resolution": f"({self.resolution}, {self.resolution})",
            "ss_seed": str(self.options.seed),
            "ss_steps": str(self.options.steps),
            "ss_total_batch_size": str(self.options.batch * self.options.accumulation),
        }
        self.prepared.save(self.output, self.options.steps, about)

    def _arrangement(self) -> Arrangement:
        options = self.options
        step = self.networks.size_multiple
        name = (options.name or self.output.stem) if isinstance(options, EmbeddingOptions) else ""
        control = options if isinstance(options, ControlOptions) else None
        return Arrangement(
            resolution=self.resolution,
            step=max(step, min(_FINEST_STEP, self.resolution // 8 // step * step)),
            batch=options.batch,
            repeats=options.repeats,
            buckets=options.buckets,
            mirror=options.mirror,
            dropout=options.dropout,
            templates=options.templates,
            name=name,
            preprocessor="" if control is None else control.preprocessor,
        )

    def _dataset(self, examples: list[Example], arrangement: Arrangement, what: str) -> Dataset:
        def report(done: int, count: int) -> None:
            self.progress(what, done, count)

        return Dataset(examples, self.cache, arrangement, report)

    def _class_dataset(self, options: DreamBoothOptions) -> Dataset:
        """Return the class's pictures, of which those that lack are made first.

        Those with captions have them in the place of the class's prompt.
        """
        folder = Path(options.class_folder) if options.class_folder else self.run / "class"

        def report(done: int, count: int) -> None:
            self.progress("pictures of the class", done, count)

        count, seed = options.class_pictures, options.seed
        make_class_pictures(self._engine, folder, options.class_prompt, count, seed, report)
        examples = [
            one if one.caption is not None else replace(one, caption=options.class_prompt)
            for one in find_examples(folder)
        ]
        own = {*own_pictures(folder)}
        examples.sort(key=lambda one: one.path not in own)  # what was made here fills up
        arrangement = replace(self._arrangement(), templates=(), dropout=0.0)
        return self._dataset(examples[: max(count, len(own))], arrangement, "pictures of the class")

    def _engine(self) -> LiveEngine:
        size = self.resolution, self.resolution
        control: tuple[str, Path, nn.Module] | None = None
        model = self.prepared.model if hasattr(self, "prepared") else None
        if isinstance(model, ControlNetModel):
            place = self.run / "controlnet-before"
            if not place.exists():
                save_network(place, model)
            control = (CONTROL, place, model)
        return LiveEngine(self.networks, self.run / "bundle", size, control)

    def _sheet(self, dataset: Dataset) -> Sheet:
        """Return what draws the sample sheets."""
        engine, prepared, prompts = self._engine(), self.prepared, self.options.sample

        def more(column: int) -> Mapping[str, Any]:
            if prepared.embedding is not None:
                return {"embeddings": [prepared.embedding()]}
            if isinstance(prepared.model, ControlNetModel):
                hint = dataset.hint_picture(column % len(dataset.items))
                return {"controls": [Control(CONTROL, hint)]}
            return {}

        return lambda: engine.sheet(prompts, more)


def _digest(sets: list[Dataset]) -> str:
    content = [
        [[item.keys, item.size, item.example.caption, _hint_digest(one, item.number)]
         for item in one.items]
        for one in sets
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _hint_digest(dataset: Dataset, number: int) -> str:
    if dataset.items[number].example.hint is None:
        return ""
    return hashlib.sha256(dataset.hint_picture(number).tobytes()).hexdigest()
