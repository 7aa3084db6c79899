"""Records of the suite: their schema, and reading them from files of JSON lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from sdengine.benchmarks.records import read_records
from sdengine.errors import ConfigError

SCHEMA = 3
MEASURED = "measured"

# Far more than anything measured, so that no arithmetic on a record leaves the numbers.
Figure = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Signed = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]


class Spread(TypedDict):
    """Repeated measurements of one figure."""

    median: Figure
    p10: Figure
    p90: Figure
    n: Count


Stages = dict[str, Spread]


class Peak(TypedDict):
    """Share of the machine's peak in the arithmetic of `dtype`."""

    dtype: str
    percent: Figure


class Side(TypedDict):
    """One system with one precision; one that was not measured has only the first three."""

    state: str
    why: NotRequired[str]
    install: NotRequired[str]
    scaled_from_steps: NotRequired[Count | None]
    start_seconds: NotRequired[dict[str, Figure]]
    memory: NotRequired[dict[str, Figure | None]]
    errors: NotRequired[dict[str, Signed | None]]
    stages_ms: NotRequired[Stages]
    pictures_per_minute: NotRequired[Figure | None]
    joules_per_picture: NotRequired[Figure | None]
    unet_gflops: NotRequired[Figure | None]
    unet_gflops_per_core: NotRequired[Figure | None]
    percent_of_peak: NotRequired[Peak | None]
    picture: NotRequired[str | None]


class Ratio(TypedDict):
    """A peer's time as a multiple of ours, with its 95 % interval."""

    ratio: Figure
    low: Figure | None
    high: Figure | None
    n: NotRequired[Count]


class Noise(TypedDict):
    """Others' load, spread and drift in percent, and whether that is too much."""

    is_noisy: bool
    why: list[str]
    others_percent: NotRequired[Figure]
    spread_percent: NotRequired[Figure]
    drift_percent: NotRequired[Signed]


class Roofline(TypedDict, total=False):
    """What the machine reaches at most, and what a step of the U-Net needs."""

    flops_per_second: dict[str, Figure]
    bytes_per_second: Figure
    threads: Count | None
    unet_step_flops: Figure
    unet_step_bytes: Figure


class Setting(TypedDict):
    """Fields of `sdengine.benchmarks.suite.setting.Setting`."""

    arch: str
    checkpoint: str | None
    task: str
    resolution: Annotated[int, Field(ge=1, le=10**6)]
    batch_size: Annotated[int, Field(ge=1, le=10**6)]
    steps: Count
    guidance_scale: Signed
    threads: Annotated[int, Field(ge=1, le=10**6)] | None
    device: str


class Stamped(TypedDict):
    """Fields of every record."""

    schema: int
    time: str
    command: str
    versions: dict[str, str | None]
    machine: dict[str, Any]


class Comparison(Stamped):
    """One setting: ours and one peer."""

    kind: Literal["comparison"]
    setting: Setting
    label: str
    runs: Count
    ours: list[str]
    peer: str | None
    sides: dict[str, Side]
    ratios: dict[str, dict[str, Ratio]]
    noise: Noise
    roofline: NotRequired[Roofline | None]
    gpu: NotRequired[dict[str, Any]]


class Point(TypedDict):
    """One value of a growth's axis."""

    value: Annotated[float, Field(ge=0, le=1e15)]
    stages_ms: Stages
    peak_bytes: NotRequired[Figure | None]


class Fit(TypedDict):
    """Cost grows by the value to the power of `exponent`; a fit may lack it."""

    exponent: NotRequired[Signed]
    low: NotRequired[Signed | None]
    high: NotRequired[Signed | None]


class Growth(Stamped):
    """How time and memory of one backend grow along an axis."""

    kind: Literal["growth"]
    arch: str
    backend: str
    precision: str
    axis: str
    points: list[Point]
    fits: dict[str, Fit]
    noise: Noise


class Operation(TypedDict):
    """One operation of a profiled network."""

    name: str
    kind: str
    level: str
    ms: Figure
    flops: Figure
    bytes_read: Figure
    bytes_written: Figure
    percent_of_time: Figure
    bound: str
    percent_of_peak: Figure | None
    values: str


class Profile(Stamped):
    """What each operation of a network takes."""

    kind: Literal["profile"]
    bundle: str
    backend: str
    precision: str
    network: str
    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    rows: Count
    total_ms: Spread
    steps: list[Operation]
    roofline: NotRequired[Roofline | None]


Record = Comparison | Growth | Profile


def read(paths: Sequence[Path]) -> list[Record]:
    """Read files of JSON lines, in their order.

    Raises:
        ConfigError: a file cannot be read, or a line is no record of the suite; it is named.
    """
    return [record for path in paths for record in _read_one(path)]


def _read_one(path: Path) -> list[Record]:
    return [
        _checked(record, f"{path}:{number}")
        for number, record in enumerate(read_records(path, SCHEMA), start=1)
    ]


def _checked(record: Mapping[str, Any], place: str) -> Record:
    """Return the record as it is, with what it holds known to be of its types."""
    try:
        _shapes().validate_python(record, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"][:6]) or "kind"
        raise ConfigError(
            f"{place} is no record of the benchmark suite: {field}: {first['msg']}. "
            "`sdengine bench` writes such records."
        ) from None
    if record["kind"] == "comparison":
        named = [*record["ours"], *filter(None, [record["peer"]])]
        missing = [label for label in named if label not in record["sides"]]
        if missing:
            raise ConfigError.for_field(
                f"{place}: sides", sorted(record["sides"]), f"a side {missing[0]!r}, which it names"
            )
    return cast("Record", record)


@cache
def _shapes() -> TypeAdapter[Any]:
    """Build the checks once: that takes longer than checking a file."""
    return TypeAdapter(Annotated[Record, Field(discriminator="kind")])
