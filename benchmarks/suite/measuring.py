"""Measuring: every side alone and verified, then ours and each peer in turns; records as they come.

Each request is served from the same noise on the same noise levels. Outputs are compared with those
of eager torch in fp32 before anything is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdengine.benchmarks.measures import BUSY_PERCENT, OtherLoad, Spread, ratio_interval
from sdengine.benchmarks.suite.setting import Setting
from sdengine.benchmarks.suite.sides.side import STAGES
from sdengine.benchmarks.suite.watching import Energy, GroupMemory
from sdengine.benchmarks.suite.workers import SideError, Worker, Workers
from sdengine.benchmarks.verification import MAX_ERROR, errors_of

Progress = Callable[[str], None]
Side = dict[str, Any]

VERIFIED_STEPS = 2
# Below it a side's picture is another one, whose time means nothing.
LEAST_PSNR_DB = 20.0
# A runtime's idle threads spin for a while; they must not take the other side's cores.
_SETTLE_SECONDS = 0.3
# Of fewer requests the steps themselves are told, and not each request's mean of them.
_FEW_RUNS = 3
# Noise, besides other programs: how far one side's requests are from each other.
SPREAD_PERCENT, DRIFT_PERCENT = 10.0, 5.0


@dataclass(frozen=True)
class Plan:
    """Say what is measured and how often.

    Args:
        ours: labels of our sides.
        peers: labels of the others; ours are measured alone where there are none.
        truth: label of eager torch in fp32, which the others are compared with.
        runs: counted requests of each side.
        fewer_steps: by label, for sides that would take too long; scaled, and said so.
    """

    ours: Sequence[str]
    peers: Sequence[str]
    truth: str
    runs: int
    fewer_steps: Mapping[str, int] = field(default_factory=dict)


class Measurement:
    """One setting measured on all of its sides."""

    def __init__(
        self, setting: Setting, plan: Plan, workers: Workers, folder: Path, progress: Progress
    ) -> None:
        """Keep the arguments.

        Args:
            setting: what is asked for.
            plan: of whom.
            workers: processes by label; all labels of the plan.
            folder: of arrays and pictures that processes pass on.
            progress: told what is going on.
        """
        self.setting = setting
        self.plan = plan
        self.workers = workers
        self.sides: dict[str, Side] = {}
        self._folder = folder
        self._progress = progress
        self._truth: dict[str, Any] = {}
        self._states: str | None = None

    def truth(self) -> None:
        """Run eager torch in fp32, with which all others are compared.

        Raises:
            SideError: it cannot be run here; then nothing can be verified.
        """
        label = self.plan.truth
        self._progress(f"{label}: the networks and a picture, for comparison")
        worker = self._start(label)
        states = str(self._folder / "truth.npz")
        worker.ask("networks", states=None, file=states, exact=True)
        self._truth = dict(np.load(states))
        self._states = states
        self._first_request(label, worker, exact=True)
        self._truth |= self._pictures(label)

    def side(self, label: str) -> Side:
        """Start a side, serve its first request, compare; return what is known, also if it failed.

        A side that was started before is not started again.
        """
        found = self.sides.get(label)
        if found is not None and ("errors" in found or found["state"] != "measured"):
            return found
        if label == self.plan.truth and self.setting.device == "cpu":
            # On a GPU it is timed with products that the comparison's are not rounded to.
            self.sides[label]["errors"] = errors_of(self._truth, self._truth)
            return self.sides[label]
        try:
            worker = self._start(label)
            self._progress(f"{label}: verifying")
            file = str(self._folder / "networks.npz")
            worker.ask("networks", states=self._states, file=file)
            errors = errors_of(dict(np.load(file)), self._truth)
            self._first_request(label, worker)
            errors |= errors_of(self._pictures(label), self._truth)
            self.sides[label]["errors"] = errors
            if self.setting.device == "cuda":
                self.sides[label] |= worker.ask("kernels")
            self._require_equal(label, errors)
        except SideError as error:
            self.fail(label, error)
        return self.sides[label]

    def fail(self, label: str, error: SideError) -> None:
        """Note how a side ended, beside what is known of it."""
        self.workers.drop(label)
        known = self.sides.get(label, {})
        self.sides[label] = {**known, "state": error.state, "why": str(error), "install": ""}

    def pair(self, peer: str | None) -> dict[str, Any]:
        """Time ours and a peer in turns; return their part of a record."""
        labels = [*self.plan.ours, *([peer] if peer is not None else [])]
        measured = [label for label in labels if self.sides[label]["state"] == "measured"]
        served: dict[str, list[dict[str, Any]]] = {label: [] for label in measured}
        load = None
        for run in range(self.plan.runs):
            for label in list(measured):
                self._progress(f"run {run + 1} of {self.plan.runs}: {label}")
                try:
                    worker = self._warm(label)
                    load = load or OtherLoad()
                    served[label].append(self._timed(label, worker))
                except SideError as error:
                    self.fail(label, error)
                    measured.remove(label)
        others = load.percent() if load is not None else 0.0
        figures = {}
        for label in list(measured):
            try:
                figures[label] = self._figures(label, served[label])
            except SideError as error:
                self.fail(label, error)
                measured.remove(label)
        sides = {label: {**self.sides[label], **figures.get(label, {})} for label in labels}
        ratios = {}
        if peer in measured:
            ratios = {
                label: _ratios(sides[label], sides[peer])
                for label in self.plan.ours
                if label in measured
            }
        return {
            "ours": list(self.plan.ours),
            "peer": peer,
            "runs": self.plan.runs,
            "sides": sides,
            "ratios": ratios,
            "noise": noise({label: sides[label] for label in measured}, others),
        }

    def picture_file(self, label: str) -> Path:
        """Return where the arrays of a side's verified request are."""
        return self._folder / f"{label.replace(' ', '-')}.npz"

    def _start(self, label: str) -> Worker:
        """Return a worker that has loaded, noting how long that took where it was started now."""
        self._progress(f"{label}: loading")
        with GroupMemory() as group:
            worker, is_new = self.workers.get(label)
            if is_new:
                seconds = worker.ask("start")["seconds"]
                known = self.sides.setdefault(
                    label, {"state": "measured", "why": "", "install": ""}
                )
                known.setdefault("start_seconds", seconds)
                known["_group_peak"] = group.peak_bytes()
        return worker

    def _first_request(self, label: str, worker: Worker, exact: bool = False) -> None:
        self._progress(f"{label}: first request")
        steps = max(min(VERIFIED_STEPS, self.setting.steps), self.setting.least_steps)
        with GroupMemory() as group:
            file = str(self.picture_file(label))
            first = worker.ask("serve", steps=steps, file=file, exact=exact)
        known = self.sides[label]
        known["start_seconds"].setdefault("first_request", first["seconds"])
        known["first_request_steps"] = steps
        self._note_memory(label, worker, group.peak_bytes())

    def _note_memory(self, label: str, worker: Worker, group_peak: int | None) -> None:
        memory = worker.ask("memory")
        self.workers.note_peak(label, memory["peak_bytes"])
        known = self.sides[label]
        loading = known.pop("_group_peak", None)
        of_group = [peak for peak in (loading, group_peak) if peak is not None]
        before = known.get("memory", {}).get("cgroup_peak_bytes")
        memory["cgroup_peak_bytes"] = before or (max(of_group) if of_group else None)
        known["memory"] = memory

    def _pictures(self, label: str) -> dict[str, Any]:
        return dict(np.load(self.picture_file(label)))

    def _require_equal(self, label: str, errors: Mapping[str, float]) -> None:
        limits = MAX_ERROR[_limits(label, self.setting.device)]
        for name, limit in limits.items():
            if name in errors and not errors[name] <= limit:
                raise SideError(
                    "failed",
                    f"{name} differs from eager torch in fp32 by {errors[name]:.3g} relative RMS, "
                    f"more than {limit:g}; it was not timed",
                )
        found = errors["image_psnr_db"]
        if not found >= LEAST_PSNR_DB:
            raise SideError(
                "failed",
                f"its picture is {found:.1f} dB from that of eager torch in fp32, below "
                f"{LEAST_PSNR_DB:g}; it was not timed",
            )

    def _warm(self, label: str) -> Worker:
        """Return a worker that has served; one that had to go for memory is started again."""
        worker, is_new = self.workers.get(label)
        if is_new:
            worker.ask("start")
            worker.ask("serve", steps=self.setting.least_steps, file=None)
        return worker

    def _timed(self, label: str, worker: Worker) -> dict[str, Any]:
        time.sleep(_SETTLE_SECONDS)
        energy = Energy(self.setting.device)
        answer = worker.ask("serve", steps=self._steps(label), file=None)
        joules = energy.joules()
        return {**answer, "joules": joules}

    def _steps(self, label: str) -> int:
        asked = self.plan.fewer_steps.get(label, self.setting.steps)
        return max(min(asked, self.setting.steps), self.setting.least_steps)

    def _figures(self, label: str, served: Sequence[Mapping[str, Any]]) -> Side:
        """Return spreads of the stages, and what follows from them."""
        steps = self._steps(label)
        scaled = steps < self.setting.steps
        samples: dict[str, list[float]] = {stage: [] for stage in STAGES}
        for answer in served:
            stages = dict(answer["stages_ms"])
            if scaled:
                rows = self.setting.batch_size
                runs = self.setting.evaluations
                more = (runs(self.setting.steps) - runs(steps)) * _step_ms(answer) / rows
                stages["end_to_end"] += more
            for stage, value in stages.items():
                samples[stage].append(value)
        every = [ms for answer in served for ms in answer["steps_ms"]]
        if every and self.plan.runs < _FEW_RUNS:
            samples["unet_step"] = every
        stages_ms = {
            stage: {**asdict(Spread.of(values)), "values": [round(v, 4) for v in values]}
            for stage, values in samples.items()
            if values
        }
        joules = [a["joules"] for a in served if a["joules"] is not None]
        end = stages_ms["end_to_end"]["median"]
        worker = self.workers.alive(label)
        if worker is not None:
            self._note_memory(label, worker, None)
        return {
            "steps": self.setting.steps,
            "scaled_from_steps": steps if scaled else None,
            "stages_ms": stages_ms,
            "pictures_per_minute": round(60_000 / end, 4),
            "joules_per_picture": (
                round(statistics.median(joules) / self.setting.batch_size, 2)
                if joules and not scaled
                else None
            ),
            "memory": self.sides[label]["memory"],
        }


def noise(sides: Mapping[str, Side], others_percent: float) -> dict[str, Any]:
    """Return how noisy the sides' requests were, and why that is said to be too much."""
    spreads, drifts = [0.0], [0.0]
    for side in sides.values():
        values = side["stages_ms"]["end_to_end"]["values"]
        middle = statistics.median(values)
        spreads.append(100 * (max(values) - min(values)) / middle)
        half = len(values) // 2
        if half:
            early, late = statistics.median(values[:half]), statistics.median(values[-half:])
            drifts.append(100 * abs(late - early) / middle)
    why = []
    if others_percent > BUSY_PERCENT:
        why.append(f"other programs took {others_percent:.0f} % of the processors")
    if max(spreads) > SPREAD_PERCENT:
        why.append(f"requests of one side differ by {max(spreads):.0f} %")
    elif max(drifts) > DRIFT_PERCENT:
        why.append(f"the later half of the requests differs by {max(drifts):.0f} %")
    return {
        "others_percent": round(others_percent, 1),
        "spread_percent": round(max(spreads), 1),
        "drift_percent": round(max(drifts), 1),
        "is_noisy": bool(why),
        "why": why,
    }


def _step_ms(answer: Mapping[str, Any]) -> float:
    """Return the time of one step of a request."""
    if answer["steps_ms"]:
        return float(statistics.median(answer["steps_ms"]))
    if "unet_step" in answer["stages_ms"]:
        return float(answer["stages_ms"]["unet_step"])
    raise SideError("failed", "it does not tell its steps apart, so that none can be scaled")


def _ratios(ours: Side, peer: Side) -> dict[str, Any]:
    """Return by stage how many times as long the peer took, with a 95 % interval."""
    found = {}
    for stage in STAGES:
        if stage not in ours["stages_ms"] or stage not in peer["stages_ms"]:
            continue
        below, above = (side["stages_ms"][stage]["values"] for side in (ours, peer))
        # Requests alternate; steps of two requests do not.
        paired = len(below) == len(above) and stage != "unet_step"
        ratio, low, high = ratio_interval(above, below, paired=paired)
        found[stage] = {"ratio": ratio, "low": low, "high": high, "n": min(len(above), len(below))}
    return found


def _limits(label: str, device: str) -> str:
    """Return the key of MAX_ERROR that a side's precision is held to."""
    precision = label.rpartition(" ")[2]
    if (precision, device) == ("fp32", "cuda"):
        return "tf32"
    return {"f32": "fp32", "f16": "fp16", "q8_0": "int8"}.get(precision, precision)
