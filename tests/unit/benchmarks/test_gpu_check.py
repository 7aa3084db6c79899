"""The steps of `make gpu-check` on a machine without a GPU: their order, failures, report."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sdengine.benchmarks import device_parity, gpu_check
from sdengine.benchmarks.accuracy_tables import pictures as picture_table
from sdengine.benchmarks.bundles import main as build_bundles
from sdengine.benchmarks.gpu_check import make_steps, write_report
from sdengine.benchmarks.pictures import compare
from sdengine.benchmarks.steps import Outcome, Step, choose, listing, run_steps, summary
from sdengine.errors import ConfigError

ROOT = Path(__file__).parents[3]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_steps_cover_everything_for_both_targets(tmp_path: Path) -> None:
    steps = make_steps(tmp_path, ["tensorrt-rtx", "triton"], python="python", root=ROOT)
    assert [step.name for step in steps] == [
        "doctor",
        "tests",
        "build-demo",
        "build-sd15",
        "parity",
        "prompt-following",
        "kernels",
        "bench-demo",
        "bench-sd15",
    ]
    by_name = {step.name: step for step in steps}
    assert by_name["tests"].environment == {"TRITON_INTERPRET": "0"}
    assert by_name["tests"].commands[0][-1] == str(ROOT / "tests")
    (bench,) = (shlex.join(command) for command in by_name["bench-sd15"].commands)
    for part in (
        "--resolutions 512,768,1024",
        "--backends tensorrt-rtx,triton",
        "--against eager-fp16,eager-fp32",
    ):
        assert part in bench
    follow = by_name["prompt-following"].commands
    assert [command[command.index("--backend") + 1] for command in follow] == [
        "tensorrt-rtx",
        "triton",
    ]
    bundles = [Path(command[command.index("--bundle") + 1]).name for command in follow]
    assert bundles == ["tensorrt-rtx", "torch"]


def test_commands_name_modules_and_options_that_exist(tmp_path: Path) -> None:
    from importlib.util import find_spec

    steps = make_steps(tmp_path, ["triton"])
    commands = [command for step in steps for command in step.commands]
    assert all(command[1] == "-m" and find_spec(command[2]) for command in commands)


def test_the_benchmarks_options_are_those_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from sdengine.cli.main import main

    for step in make_steps(tmp_path, ["triton"])[-2:]:
        assert step.commands[-1][1:3] == ("-m", "sdengine")
        assert main(list(step.commands[-1][3:])) == 1  # 2 is a wrong option
        assert "backend torch-cuda is not available" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("targets", "archs", "message"),
    [
        (["native"], ["demo"], "targets: 'native'"),
        (["triton"], ["sd9"], "arch: 'sd9'"),
        ([""], ["demo"], "targets: ''"),
    ],
)
def test_unknown_targets_and_architectures(
    targets: list[str], archs: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_steps(tmp_path, targets, archs)


FAKES = [
    Step("first", "say something", (python("print('said')"), python("print('more')"))),
    Step(
        "broken",
        "fail in two ways of three",
        (python("raise SystemExit(3)"), python("print('between')"), ("/nonexistent/program",)),
    ),
    Step("killed", "end by a signal", (python("import os; os.abort()"),)),
    Step(
        "last",
        "read a variable",
        (python("import os; assert os.environ['A'] == 'b'"),),
        {"A": "b"},
    ),
]


def test_a_failed_step_does_not_stop_the_others(tmp_path: Path) -> None:
    shown: list[str] = []
    outcomes = run_steps(FAKES, tmp_path / "out", shown.append)
    assert [(o.step, o.ok) for o in outcomes] == [
        ("first", True),
        ("broken", False),
        ("killed", False),
        ("last", True),
    ]
    assert len(outcomes[1].failed) == 2
    assert "exit status 3, see" in outcomes[1].failed[0]
    assert "did not start" in outcomes[1].failed[1]
    assert "ended by signal 6" in outcomes[2].failed[0]
    assert (tmp_path / "out" / "first.log").read_text().count("$ ") == 2
    assert "between" in (tmp_path / "out" / "broken.log").read_text()
    assert shown[0] == "[1/4] first: say something"
    assert any(line.strip().startswith("FAILED, ") for line in shown)
    lines = (tmp_path / "out" / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["ok"] for line in lines] == [True, False, False, True]
    table = summary(outcomes)
    assert "| first | ok |" in table
    assert "| broken | failed: " in table


def test_steps_are_chosen_by_name() -> None:
    assert [step.name for step in choose(FAKES, "last, first", "")] == ["first", "last"]
    assert [step.name for step in choose(FAKES, "", "broken")] == ["first", "killed", "last"]
    for only, skip in (("second", ""), ("", "second")):
        with pytest.raises(ConfigError, match="'second' is not accepted; expected first, broken"):
            choose(FAKES, only, skip)
    with pytest.raises(ConfigError, match="no step is left"):
        choose(FAKES, "last", "last")


def test_the_listing_is_what_a_shell_would_take() -> None:
    lines = listing(FAKES).splitlines()
    assert lines[0] == "first: say something"
    assert lines[1] == f"    {sys.executable} -c 'print('\"'\"'said'\"'\"')'"
    assert lines[-1].strip().startswith("A=b ")


def test_listing_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--list", "--output", str(tmp_path / "out"), "--only", "kernels,tests"]
    assert gpu_check.main(options) == 0
    out = capsys.readouterr().out
    assert "sdengine.benchmarks.kernel_speed" in out
    assert "doctor" not in out
    assert list(tmp_path.iterdir()) == []


def test_bad_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--only", "sleep"], ["--targets", "cpu"], ["--archs", "sd9"]):
        assert gpu_check.main([*options, "--list"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_without_a_gpu_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_check.main(["--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: this needs an NVIDIA GPU: torch ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", [False, True])
def test_the_whole_check_ends_in_a_report_and_a_status(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Present:
        def available(self) -> tuple[bool, str]:
            return True, "a made-up GPU"

    steps = FAKES if broken else FAKES[:1]
    monkeypatch.setattr(gpu_check, "get_backend", lambda name: Present())
    monkeypatch.setattr(gpu_check, "make_steps", lambda *_: steps)
    stale = tmp_path / "bench.jsonl"
    stale.write_text("{}\n")
    assert gpu_check.main(["--output", str(tmp_path)]) == int(broken)
    report = (tmp_path / "gpu-check.md").read_text()
    assert "| first | ok |" in report
    assert ("| killed | failed: " in report) == broken
    # No step measured anything, and what an earlier check left is not taken for this one's.
    assert report.count("Not measured: there is no ") == 3
    assert not stale.exists()


def test_the_report_holds_the_tables_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "kernel-speed.md").write_text("**Triton kernels on a made-up GPU**\n")
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "prompt-following-128-fp16.md").write_text("**triton fp16**\n")
    report = write_report(tmp_path, [Outcome("kernels", True, 1.0, ())]).read_text()
    assert "**Triton kernels on a made-up GPU**" in report
    assert report.index("**triton fp16**") < report.index("**Triton kernels")
    assert "Not measured: there is no device-parity.md." in report
    assert "Not measured: there is no bench.jsonl." in report


def test_pictures_of_a_gpu_are_judged_by_the_worst() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    near, far = black + np.uint8(1), black + np.uint8(10)  # 48.1 and 28.1 dB
    expected = {128: [black, black], 192: [black, black]}
    found = {"triton": {128: [black, near], 192: [near, far]}}
    table = compare(found, expected)
    assert table == {"triton": {128: [100.0, 48.1], 192: [48.1, 28.1]}}
    assert device_parity.failures(table) == ["triton at 192: 28.1 dB, below 30 dB"]
    shown = picture_table(table, "PSNR of 2 pictures")
    assert "lowest (median) | 128 | 192 |" in shown
    assert "| triton | 48.1 (74.0) | 28.1 (38.1) |" in shown


def test_pictures_need_their_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options = ["--targets", "triton", "--output", str(tmp_path / "out")]
    assert device_parity.main(options) == 1
    assert capsys.readouterr().err.startswith("error: backend triton is not available: ")
    assert list(tmp_path.iterdir()) == []


def test_bundles_are_built_for_a_gpu_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_bundles(["sd15", "native", "cache"])
    assert "tensorrt-rtx" in capsys.readouterr().err


def test_make_only_calls_the_script() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\ngpu-check:")[2].partition("\n\n")[0]
    assert recipe.replace("\\\n\t", "").count("\n\t") == 1
    assert "benchmarks/gpu_check.py" in recipe
