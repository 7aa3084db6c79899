"""`sdengine batch`: pictures of a file of requests, in one process or on a Ray cluster."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdengine.cli.terminal import note, progress_bar, say, say_json
from sdengine.errors import ConfigError, OutputError
from sdengine.storage.byte_size import parse_bytes

if TYPE_CHECKING:
    from sdengine.cli.terminal import ProgressBar
    from sdengine.serving.batch import BatchJob, Record
    from sdengine.serving.batch_rows import RowFile
    from sdengine.serving.manifest import Manifest

_MAX_TOLD = 20


def batch(
    requests: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON Lines: a request a line, by its fields.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Made if it is not there.")
    ],
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A cluster: local, auto or HOST:PORT; else none."),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(metavar="N", help="Engines on it; one a node if not given.")
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(metavar="N", help="GPUs of each; 0 if not given.")
    ] = None,
    stall: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="End after so long without a row; 3600 if not given."),
    ] = None,
    bundle: Annotated[str, typer.Option(metavar="PATH", help="Bundle, or demo.")] = "demo",
    backend: Annotated[
        str, typer.Option(help="auto, or a name such as native or triton.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or int8.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of each engine.")] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Free each network once it is done.")
    ] = False,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The most that an engine takes, as in 8GiB.")
    ] = None,
    device: Annotated[
        int | None, typer.Option(metavar="N", help="Number of the GPU; not with --ray.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Of files that `model` may name.")
    ] = None,
    loras: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The same of `loras` and of tags.")
    ] = None,
    embeddings: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The same of `embeddings` and prompts.")
    ] = None,
    hypernetworks: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The same of `hypernetworks` and of tags.")
    ] = None,
    upscalers: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The same of `hires_model`.")
    ] = None,
    ip_adapters: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The same of `ip_adapters`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make the pictures of a file of requests; those that are there are not made again.

    Each line is a JSON object of a request's fields, and perhaps an `id`. Pictures in it are base64
    or paths below the file's folder, other files are names. Exit status 1 says that some rows could
    not be made.
    """
    from sdengine.serving.batch import BatchJob
    from sdengine.serving.batch_rows import RowFile
    from sdengine.serving.manifest import Manifest

    on_ray = _ray_options(ray, actors, gpus_per_actor, stall, device)
    options: dict[str, Any] = {
        "bundle": bundle if bundle == "demo" else str(Path(bundle).resolve()),
        "backend": backend,
        "precision": precision,
        "threads": threads,
        "low_memory": low_memory,
        "memory_bytes": None if memory is None else parse_bytes("--memory", memory),
        "device": device,
    }
    folders = {
        kind: str(Path(folder).resolve())
        for kind, folder in {
            "model": models,
            "lora": loras,
            "embedding": embeddings,
            "hypernetwork": hypernetworks,
            "upscaler": upscalers,
            "ip_adapter": ip_adapters,
        }.items()
        if folder is not None
    }
    rows = RowFile(requests.resolve())
    job = BatchJob(rows.path, _made_folder(output), options, folders)
    started = time.monotonic()
    counts: Counter[str] = Counter()
    with (
        progress_bar("loading", remaining=True, stays=True, quiet=as_json) as bar,
        Manifest(rows, job.output) as manifest,
        _told_how_to_go_on(),
        _records(job, rows, on_ray) as records,
    ):
        pace = _Pace()
        for record in records:
            _take(record, manifest, counts)
            _show(bar, counts, rows.count, pace.per_minute(counts["pictures"]))
        for record in manifest.lost():
            _take(record, manifest, counts)
        if not rows.is_unchanged():
            raise ConfigError(
                f"requests: {str(requests)!r} was changed while its rows were made, so there is no "
                "manifest. Run the same command again: what is made stays."
            )
        path = manifest.finish()
    seconds = time.monotonic() - started
    if as_json:
        say_json({"rows": rows.count, **_counted(counts), "seconds": round(seconds, 3)})
    else:
        say(f"{path} ({rows.count} rows: {_sentence(counts)})")
    if counts["error"]:
        note(f"error: {counts['error']} rows could not be made; errors.jsonl beside it says why.")
        raise typer.Exit(1)


def _ray_options(
    address: str | None,
    actors: int | None,
    gpus_per_actor: float | None,
    stall: float | None,
    device: int | None,
) -> Any:
    """Return RayOptions; None where all is to be done here."""
    given = {"--actors": actors, "--gpus-per-actor": gpus_per_actor, "--stall": stall}
    if address is None:
        for name, value in given.items():
            if value is not None:
                raise ConfigError.for_field(name, value, "none without --ray")
        return None
    if device is not None:
        raise ConfigError.for_field("--device", device, "none with --ray, which gives the GPUs")
    from sdengine.serving.ray_cluster import STALL_SECONDS, RayOptions, import_ray

    options = RayOptions(
        address,
        actors,
        gpus_per_actor or 0.0,
        STALL_SECONDS if stall is None else stall,
    )
    import_ray(options)  # before anything is begun
    return options


def _made_folder(output: Path) -> Path:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{str(output)!r} cannot be made: {error.strerror}.") from None
    return output.resolve()


@contextmanager
def _records(job: BatchJob, rows: RowFile, on_ray: Any) -> Iterator[Iterator[Record]]:
    if on_ray is None:
        with job.opened() as maker:
            yield map(maker.make, rows.rows())
        return
    from sdengine.serving.ray_batch import records_on_ray

    with (
        redirect_stdout(sys.stderr),  # to which Ray prints what it has to say of its processes
        closing(records_on_ray(job, rows, on_ray)) as records,  # type: ignore[type-var]
    ):
        yield records


def _take(record: Record, manifest: Manifest, counts: Counter[str]) -> None:
    manifest.add(record)
    counts[record.status] += 1
    counts["pictures"] += record.num_files if record.status == "made" else 0
    told = [record.content["error"]["message"]] if record.status == "error" else []
    for line in told or record.content.get("warnings", ()):
        counts["told"] += 1
        if counts["told"] <= _MAX_TOLD:
            note(f"{'error' if told else 'warning'}: line {record.number}: {line}")
        if counts["told"] == _MAX_TOLD:
            note("what else there is to say of lines is in the manifest.")


class _Pace:
    """Pictures a minute since the first ones were there: loading engines counts for nothing."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def per_minute(self, pictures: int) -> float:
        now = time.monotonic()
        if self._first is None and pictures:
            self._first = pictures, now
        if self._first is None or now == self._first[1]:
            return 0.0
        return 60 * (pictures - self._first[0]) / (now - self._first[1])


def _show(bar: ProgressBar, counts: Counter[str], total: int, rate: float) -> None:
    done = counts["made"] + counts["kept"] + counts["error"]
    errors = f", {counts['error']} errors" if counts["error"] else ""
    bar("rows", done, total, f"{rate:.1f} pictures a minute{errors}")


@contextmanager
def _told_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note("what is made stays; the same command goes on from there.")
        raise


def _counted(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in ("made", "kept", "error", "pictures")}


def _sentence(counts: Counter[str]) -> str:
    shown = {"made": "made", "kept": "there already", "error": "with errors"}
    return ", ".join(f"{counts[name]} {word}" for name, word in shown.items() if counts[name])
