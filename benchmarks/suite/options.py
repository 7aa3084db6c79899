"""Options of the command, and the suite that they ask for; what cannot be is refused at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdengine.benchmarks.cases import native_side
from sdengine.benchmarks.suite.running import Suite
from sdengine.benchmarks.suite.setting import Setting
from sdengine.benchmarks.suite.systems import OURS, PEERS, Chosen, chosen, missing
from sdengine.errors import ConfigError

STEPS, GUIDANCE = 20, 5.0
# MLPerf Inference v4.0 and later, text to image with SDXL: 1024 by 1024, Euler's method, 20 steps,
# guidance 8. Source: "MLPerf Inference: Text to Image", the rules of MLCommons.
_MLPERF_ARCH, _MLPERF_SIDE, _MLPERF_STEPS, _MLPERF_GUIDANCE = "sdxl", "1024", 20, 8.0


@dataclass(frozen=True)
class Asked:
    """The command's options as they were given; lists are separated by commas."""

    arch: str | None = None
    checkpoint: Path | None = None
    task: str = "text"
    resolutions: str | None = None
    batch: str = "1"
    steps: int | None = None
    guidance: float | None = None
    precision: str = "auto"
    backends: str | None = None
    against: str | None = None
    device: str = "cpu"
    threads: str = ""
    runs: int = 5
    fewer: tuple[str, ...] = ()
    limit: float = 3600.0
    mlperf: bool = False
    pictures: Path | None = None


def suite_of(asked: Asked, command: str) -> Suite:
    """Return the suite that is asked for.

    Args:
        asked: the options.
        command: that gave them.

    Raises:
        ConfigError: an option, or two together, cannot be.
    """
    if asked.mlperf:
        asked = _with_mlperf(asked)
    if not 1 <= asked.runs <= 1000:
        raise ConfigError.for_field("runs", asked.runs, "an integer from 1 to 1000")
    if not 0 < asked.limit < 1e6:
        raise ConfigError.for_field("limit", asked.limit, "seconds, more than 0")
    ours = _ours(asked)
    peers = _peers(asked)
    doubled = {one.label for one in ours} & {one.label for one in peers}
    if doubled:
        raise ConfigError.for_field(
            "against", min(doubled), "a system that is not among the backends too"
        )
    return Suite(
        settings=_settings(asked),
        ours=ours,
        peers=peers,
        truth=chosen("eager-fp32", PEERS, asked.device),
        runs=asked.runs,
        command=command,
        fewer_steps=_fewer(asked.fewer),
        limit_seconds=asked.limit,
        pictures=asked.pictures,
    )


def _with_mlperf(asked: Asked) -> Asked:
    """Fill in MLPerf's setting; what is given besides and differs is refused."""
    filled = replace(
        asked,
        arch=_MLPERF_ARCH,
        resolutions=_MLPERF_SIDE,
        steps=_MLPERF_STEPS,
        guidance=_MLPERF_GUIDANCE,
    )
    for field in ("arch", "resolutions", "steps", "guidance"):
        value = getattr(filled, field)
        given = getattr(asked, field)
        if given is not None and given != value:
            raise ConfigError.for_field(field, given, f"{value} with --mlperf, or none")
    if asked.checkpoint is not None or asked.task != "text":
        raise ConfigError("--mlperf is text to image with the weights of --arch sdxl.")
    return filled


def _settings(asked: Asked) -> list[Setting]:
    """Return every combination, in the order in which they were named."""
    if asked.checkpoint is not None and asked.arch is not None:
        raise ConfigError.for_field("arch", asked.arch, "none with a checkpoint, which says it")
    if asked.checkpoint is not None:
        archs = [asked.checkpoint.resolve().name]
        if asked.resolutions is None:
            raise ConfigError.for_field("resolutions", None, "sides in pixels with a checkpoint")
    else:
        archs = _words("arch", asked.arch or "demo")
    found = []
    for arch in archs:
        sides = (
            [native_side(arch)]
            if asked.resolutions is None
            else _integers("resolutions", asked.resolutions)
        )
        threads = _integers("threads", asked.threads) if asked.threads else [None]
        for task in _words("task", asked.task):
            for side in sides:
                for batch in _integers("batch", asked.batch):
                    found += [
                        Setting(
                            arch=arch,
                            checkpoint=str(asked.checkpoint) if asked.checkpoint else None,
                            task=task,
                            resolution=side,
                            batch_size=batch,
                            steps=STEPS if asked.steps is None else asked.steps,
                            guidance_scale=GUIDANCE if asked.guidance is None else asked.guidance,
                            threads=count,
                            device=asked.device,
                        )
                        for count in threads
                    ]
    return found


def _ours(asked: Asked) -> list[Chosen]:
    """Return our backends, each in every precision asked for."""
    precisions = _words("precision", asked.precision)
    if asked.backends is None:
        names = [
            system.name
            for system in OURS.values()
            if system.is_default and asked.device in system.devices and not missing(system)
        ]
        if not names:
            raise ConfigError.for_field(
                "device", asked.device, "one that a backend of ours is installed for"
            )
    else:
        names = _words("backends", asked.backends)
    suffixes = ["" if p == "auto" else f"-{p}" for p in precisions]
    return [chosen(f"{name}{suffix}", OURS, asked.device) for name in names for suffix in suffixes]


def _peers(asked: Asked) -> list[Chosen]:
    """Return the peers; `all` is every one in its own precision, and eager torch in all."""
    given = asked.against
    if given == "none":
        return []
    if given is None:
        given = "eager-fp16" if asked.device == "cuda" else "eager"
    if given == "all":
        every = [name for name, s in PEERS.items() if asked.device in s.devices]
        halves = ["eager-bf16", "eager-fp16"] if asked.device == "cuda" else ["eager-bf16"]
        given = ",".join(["eager", *halves, *(name for name in every if name != "eager")])
    return [chosen(name, PEERS, asked.device) for name in _words("against", given)]


def _fewer(given: Sequence[str]) -> dict[str, int]:
    found = {}
    for text in given:
        name, _, count = text.partition("=")
        if name not in {**OURS, **PEERS} or not count.isdecimal() or int(count) < 1:
            raise ConfigError.for_field(
                "fewer-steps", text, f"NAME=STEPS with one of {', '.join({**OURS, **PEERS})}"
            )
        found[name] = int(count)
    return found


def _words(field: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ConfigError.for_field(field, text, "one or several words, separated by commas")
    return list(dict.fromkeys(words))


def _integers(field: str, text: str) -> list[int]:
    words = _words(field, text)
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError.for_field(field, text, "one or several whole numbers above 0, as 1,4")
    return [int(word) for word in words]
