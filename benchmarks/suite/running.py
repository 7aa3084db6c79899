"""Running the suite: what is built for whom, which sides run here, and the records they leave."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdengine.benchmarks import bundles, gpu
from sdengine.benchmarks.records import append_record, stamped
from sdengine.benchmarks.suite.arithmetic import network_arithmetic, share_of_peak
from sdengine.benchmarks.suite.machine_roofline import measure as measure_roofline
from sdengine.benchmarks.suite.measuring import Measurement, Plan, Side
from sdengine.benchmarks.suite.setting import Setting
from sdengine.benchmarks.suite.sides.side import Place
from sdengine.benchmarks.suite.suite_records import SCHEMA
from sdengine.benchmarks.suite.systems import Chosen, missing
from sdengine.benchmarks.suite.task_inputs import build_flags
from sdengine.benchmarks.suite.watching import processor_state
from sdengine.benchmarks.suite.workers import Launch, SideError, Workers
from sdengine.checkpoints.folder import DEMO_CHECKPOINT
from sdengine.errors import BackendUnavailableError, SdengineError

# A picture that is noise takes its pixels' bytes, and a page has one of every side.
_KEPT_PIXELS = 160
Progress = Callable[[str], None]
Write = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Suite:
    """Say what is measured.

    Args:
        settings: what every side is asked for, one after the other.
        ours, peers: who is asked.
        truth: eager torch in fp32 on the settings' device.
        runs: counted requests of each side.
        fewer_steps: by name of a system, the most steps of a request; longer ones are scaled.
        command: what does it again.
        limit_seconds: the most that one answer of a side may take.
        pictures: folder of a small picture of each side, or None for none.
    """

    settings: Sequence[Setting]
    ours: Sequence[Chosen]
    peers: Sequence[Chosen]
    truth: Chosen
    runs: int
    command: str
    fewer_steps: dict[str, int] = field(default_factory=dict)
    limit_seconds: float = 3600.0
    pictures: Path | None = None


def run(
    suite: Suite, cache: Path, write: Write, progress: Progress, *, rebuild: bool = False
) -> None:
    """Measure all settings; `write` gets each record as soon as a side is done.

    Args:
        suite: what is measured.
        cache: folder of built bundles, checkpoints and what peers convert.
        write: given a record of `sdengine.benchmarks.suite.suite_records`.
        progress: told what is going on.
        rebuild: build the bundles again.

    Raises:
        SdengineError: what none can be measured without is lacking: eager torch, to compare with,
            or memory or disk for the model.
    """
    if any(setting.device == "cuda" for setting in suite.settings):
        gpu.require_backends("torch-cuda", *(one.system.name for one in suite.ours))
    for setting in suite.settings:
        progress(f"{setting.label}: preparing")
        with tempfile.TemporaryDirectory(prefix="sdengine-bench-") as folder:
            _Setting(suite, setting, cache, Path(folder), progress, rebuild).run(write)


class _Setting:
    """One setting of a suite."""

    def __init__(
        self,
        suite: Suite,
        setting: Setting,
        cache: Path,
        folder: Path,
        progress: Progress,
        rebuild: bool,
    ) -> None:
        self.suite = suite
        self.setting = setting
        self._cache = cache
        self._folder = folder
        self._progress = progress
        self._rebuild = rebuild
        sides = tuple(
            sorted(
                {
                    other.resolution
                    for other in suite.settings
                    if (other.arch, other.task) == (setting.arch, setting.task)
                }
            )
        )
        self._model = bundles.Model(
            setting.arch,
            sides,
            max(other.batch_size for other in suite.settings if other.arch == setting.arch),
            setting.device,
            setting.checkpoint,
            build_flags(setting, cache),
        )

    def run(self, write: Write) -> None:
        """Measure it."""
        suite = self.suite
        launches: dict[str, Launch] = {}
        refused: dict[str, Side] = {}
        for chosen in dict.fromkeys([suite.truth, *suite.ours, *suite.peers]):
            why, install = self._lacking(chosen)
            if not why:
                try:
                    launches[chosen.label] = self._launch(chosen)
                except SdengineError as error:
                    if chosen == suite.truth:  # the model itself is not there, or not one
                        raise
                    why = str(error)
            if why:
                refused[chosen.label] = _not_run(why, install)
        if suite.truth.label in refused:
            raise BackendUnavailableError(
                f"{suite.truth.label}, which all others are compared with, cannot run: "
                f"{refused[suite.truth.label]['why']}"
            )
        roofline = self._roofline()
        plan = Plan(
            ours=[chosen.label for chosen in suite.ours],
            peers=[chosen.label for chosen in suite.peers],
            truth=suite.truth.label,
            runs=suite.runs,
            fewer_steps={
                chosen.label: suite.fewer_steps[chosen.system.name]
                for chosen in (*suite.ours, *suite.peers)
                if chosen.system.name in suite.fewer_steps
            },
        )
        workers = Workers(launches, self._folder, suite.limit_seconds)
        measurement = Measurement(self.setting, plan, workers, self._folder, self._progress)
        measurement.sides |= refused
        with workers.closing():
            try:
                measurement.truth()
            except SideError as error:
                raise BackendUnavailableError(
                    f"{suite.truth.label}, which all others are compared with: {error}"
                ) from None
            if self.setting.device == "cuda":
                roofline |= workers.get(suite.truth.label)[0].ask("gpu")
            # The truth's process goes where it is not to be timed.
            if suite.truth.label not in plan.peers:
                workers.drop(suite.truth.label)
            for label in plan.ours:
                measurement.side(label)
            peers: list[str | None] = [*plan.peers] or [None]
            for peer in peers:
                if peer is not None:
                    measurement.side(peer)
                found = measurement.pair(peer)
                write(self._record(found, measurement, roofline))
                if peer is not None:
                    workers.drop(peer)

    def _lacking(self, chosen: Chosen) -> tuple[str, str]:
        """Return why a side is not run here, and what installs it."""
        system, setting = chosen.system, self.setting
        if setting.device not in system.devices:
            return f"it does not run on device {setting.device}", ""
        if setting.task not in system.tasks:
            return f"the suite asks it for {', '.join(system.tasks)} alone", ""
        if setting.checkpoint is None and setting.arch not in system.archs:
            return f"the suite asks it for {', '.join(system.archs)} alone", ""
        install = missing(system)
        if install:
            return "it is not installed", install
        return "", ""

    def _launch(self, chosen: Chosen) -> Launch:
        """Return how a side's process is started, with its model built."""
        system = chosen.system
        bundle = None
        if system.bundle is not None:
            built = bundles.bundle_of(
                self._model, system.bundle, self._cache, self._progress,
                precision=chosen.precision, rebuild=self._rebuild,
            )  # fmt: skip
            bundle = built.path
        checkpoint = None
        if system.needs_checkpoint:
            checkpoint = bundles.checkpoint_of(self._model, self._cache, self._progress)
            checkpoint = str(DEMO_CHECKPOINT) if checkpoint == "demo" else checkpoint
        work = self._cache / f"{self.setting.arch}-{system.name}"
        work.mkdir(parents=True, exist_ok=True)
        place = Place(checkpoint, bundle, str(work))
        return Launch(
            chosen.label, system.module, system.side, chosen.precision, place,
            self.setting,
        )  # fmt: skip

    def _roofline(self) -> dict[str, Any]:
        """Return what the U-Net's step needs, and what this machine reaches at best."""
        self._progress("measuring what this machine reaches at best")
        needed = network_arithmetic(self.setting)
        if self.setting.device == "cuda":
            return {"unet": needed}
        threads = self.setting.threads or _usable_threads()
        return {"unet": needed, "roofline": {**measure_roofline(threads), "threads": threads}}

    def _record(
        self, found: dict[str, Any], measurement: Measurement, roofline: dict[str, Any]
    ) -> dict[str, Any]:
        """Return a whole record."""
        best = {**roofline.get("roofline", {}), **roofline["unet"]}
        for label, side in found["sides"].items():
            if "stages_ms" not in side:
                continue
            side |= share_of_peak(side["stages_ms"].get("unet_step"), label, best)
            side["picture"] = self._keep_picture(label, measurement)
        distributions = {
            name
            for chosen in (*self.suite.ours, *self.suite.peers)
            if chosen.label in found["sides"]
            for name in chosen.system.distributions
        }
        figures = {
            "kind": "comparison",
            "command": self.suite.command,
            "setting": asdict(self.setting),
            "label": self.setting.label,
            **found,
            "roofline": best,
        }
        record = stamped(figures, *sorted(distributions), schema=SCHEMA)
        record["machine"] |= processor_state()
        if "gpu" in roofline:
            record["gpu"] = roofline["gpu"]
        return record

    def _keep_picture(self, label: str, measurement: Measurement) -> str | None:
        """Keep the middle of a side's first picture where a folder is given, as it is."""
        folder = self.suite.pictures
        if folder is None or not measurement.picture_file(label).exists():
            return None
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        with np.load(measurement.picture_file(label)) as arrays:
            pixels = arrays["images"][0]
        top, left = (max(0, (side - _KEPT_PIXELS) // 2) for side in pixels.shape[:2])
        image = Image.fromarray(pixels[top:, left:][:_KEPT_PIXELS, :_KEPT_PIXELS])
        setting = self.setting
        side = label.replace(" ", "-")
        name = f"bench-{setting.arch}-{setting.resolution}-{setting.task}-{side}.png"
        image.save(folder / name, optimize=True)
        return name


def _not_run(why: str, install: str) -> Side:
    return {"state": "not run", "why": why, "install": install}


def _usable_threads() -> int:
    from sdengine.machine import usable_processors

    return usable_processors().threads


def writer(path: Path | None, show: Callable[[dict[str, Any]], None]) -> Write:
    """Return what shows each record, and adds it to a file where there is one."""

    def write(record: dict[str, Any]) -> None:
        if path is not None:
            append_record(record, path)
        show(record)

    return write
