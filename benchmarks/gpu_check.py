"""GPU check: everything that needs an NVIDIA GPU; `make gpu-check` installs and runs it.

    python benchmarks/gpu_check.py --list                    # what would be run
    python benchmarks/gpu_check.py --output build/gpu-check  # all of it
    python benchmarks/gpu_check.py --only kernels,bench-sd15 --targets tensorrt,triton

Every step is reported, none stops the others, and the exit status is 1 where one failed. In the
output folder afterwards: a log of each step, steps.jsonl, the results as JSON lines (bench.jsonl,
kernel-speed.jsonl), and gpu-check.md with the tables. Comparisons of bench.jsonl that are copied to
benchmarks/results appear in its README; see report.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sdengine.backends import get_backend
from sdengine.benchmarks.bundles import Model, bundle_path
from sdengine.benchmarks.cases import TARGETS, bundle_target
from sdengine.benchmarks.records import read_records
from sdengine.benchmarks.steps import Outcome, Step, choose, listing, run_steps, summary
from sdengine.benchmarks.suite.suite_records import SCHEMA
from sdengine.benchmarks.suite.tables import as_markdown, groups
from sdengine.errors import ConfigError, SdengineError

ARCHS = ("demo", "sd15")
_AGAINST = ("eager-fp16", "eager-fp32")
_STEPS, _RUNS = 20, 9
_ROOT = Path(__file__).parent.parent


def make_steps(
    output: Path,
    targets: Sequence[str],
    archs: Sequence[str] = ARCHS,
    python: str = sys.executable,
    root: Path = _ROOT,
) -> list[Step]:
    """Return all steps in their order.

    Args:
        output: folder of results; bundles are kept in its `cache`.
        targets: what is checked, of TARGETS["cuda"].
        archs: what is measured.
        python: of the environment that sdengine is installed in.
        root: the checkout, which has the tests.

    Raises:
        ConfigError: a target or architecture is unknown.
    """
    sdengine = (python, "-m", "sdengine")
    cache = output / "cache"
    for target in targets:
        if target not in TARGETS["cuda"]:
            raise ConfigError.for_field("targets", target, ", ".join(TARGETS["cuda"]))
    models = {arch: Model.on_gpu(arch) for arch in (*ARCHS, *archs)}
    names = ",".join(targets)
    following = tuple(
        (
            python, "-m", "sdengine.benchmarks.prompt_following",
            "--bundle", str(bundle_path(models["demo"], bundle_target(target), cache)),
            "--backend", target, "--output", str(output / target),
        )
        for target in targets
    )  # fmt: skip
    builds = [
        Step(
            f"build-{arch}",
            f"build {arch} for {names} at {', '.join(map(str, sides))} in fp16",
            tuple(
                (python, "-m", "sdengine.benchmarks.bundles", arch, target, str(cache))
                for target in targets
            ),
        )
        for arch, sides in ((a, models[a].sides) for a in archs)
    ]
    benches = [
        Step(
            f"bench-{arch}",
            f"{arch} on {names} against {', '.join(_AGAINST)}",
            (
                (
                    *sdengine, "bench", "--device", "cuda", "--arch", arch,
                    "--resolutions", ",".join(map(str, models[arch].sides)),
                    "--backends", names, "--against", ",".join(_AGAINST),
                    "--steps", str(_STEPS), "--runs", str(_RUNS), "--cache", str(cache),
                    "--json", str(output / "bench.jsonl"),
                ),
            ),
        )
        for arch in archs
    ]  # fmt: skip
    return [
        Step("doctor", "say what this machine has", ((*sdengine, "doctor"),)),
        Step(
            "tests",
            "run every test that needs a GPU",
            ((python, "-m", "pytest", "-m", "gpu", "-ra", str(root / "tests")),),
            {"TRITON_INTERPRET": "0"},
        ),
        *builds,
        Step(
            "parity",
            "compare the demo model's pictures with the CPU's",
            (
                (
                    python, "-m", "sdengine.benchmarks.device_parity", "--targets", names,
                    "--cache", str(cache), "--output", str(output),
                ),
            ),
        ),
        Step("prompt-following", "score the demo model's pictures", following),
        Step(
            "kernels",
            "time every Triton kernel against torch",
            ((python, "-m", "sdengine.benchmarks.kernel_speed", "--output", str(output)),),
        ),
        *benches,
    ]  # fmt: skip


def write_report(output: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write gpu-check.md from what the steps left in the output folder."""
    parts = ["# What was checked", "", summary(outcomes), "", "# What was measured", ""]
    following = sorted(output.glob("*/prompt-following-*.md"))
    for path in (output / "device-parity.md", *following, output / "kernel-speed.md"):
        parts += [_text(path), ""]
    bench = output / "bench.jsonl"
    records = read_records(bench, SCHEMA) if bench.exists() else []
    if not records:
        parts.append("Not measured: there is no bench.jsonl.")
    parts += ["\n\n".join(as_markdown(group) for group in groups(records))]
    path = output / "gpu-check.md"
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; return 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the steps and run none")
    parser.add_argument("--output", type=Path, default=Path("build/gpu-check"))
    parser.add_argument(
        "--targets", default="tensorrt-rtx,triton", help=f"of {', '.join(TARGETS['cuda'])}"
    )
    parser.add_argument("--archs", default=",".join(ARCHS), help="demo, sd15, sd21, sdxl")
    parser.add_argument("--only", default="", help="names of steps")
    parser.add_argument("--skip", default="", help="names of steps")
    options = parser.parse_args(arguments)
    output = options.output.absolute()
    try:
        steps = make_steps(output, options.targets.split(","), options.archs.split(","))
        steps = choose(steps, options.only, options.skip)
        if options.list:
            print(listing(steps))
            return 0
        usable, reason = get_backend("torch-cuda").available()
    except SdengineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    if not usable:
        print(f"error: this needs an NVIDIA GPU: {reason} Nothing was run.", file=sys.stderr)
        return 1
    if not (options.only or options.skip):
        for name in ("bench.jsonl", "kernel-speed.md", "device-parity.md"):
            (output / name).unlink(missing_ok=True)  # of an earlier check
    outcomes = run_steps(steps, output)
    print(summary(outcomes))
    print(f"The report is {write_report(output, outcomes)}")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def _text(path: Path) -> str:
    if not path.exists():
        return f"Not measured: there is no {path.name}."
    return path.read_text(encoding="utf-8").rstrip()


if __name__ == "__main__":
    sys.exit(main())
