"""The real command on a bundle of a few operations: results, streams, exit statuses."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import errors

import sdengine
from sdengine.request.request import Request

Run = Callable[..., "subprocess.CompletedProcess[str]"]

GENERATE_KEYS = {
    *("files", "seeds", "model", "backend", "precision", "timings", "warnings", "notes"),
    *Request("").to_dict(),
}


def test_generate_writes_the_apis_image(run: Run, tiny: Path, tmp_path: Path) -> None:
    done = run("generate", "a circle", "--seed", 7, "-o", "out.png", "--bundle", tiny)
    assert (done.returncode, done.stdout) == (0, "out.png (seed 7)\n")
    with sdengine.load(tiny) as engine:
        expected = engine.generate("a circle", seed=7).arrays[0]
    with Image.open(tmp_path / "out.png") as image:
        assert np.array_equal(np.asarray(image), expected)
        assert "Seed: 7" in image.info["parameters"]
    assert os.listdir(tmp_path) == ["out.png"]


def test_json_is_the_only_output(run: Run, tiny: Path, tmp_path: Path) -> None:
    arguments = ["--negative", "blue", "--steps", 3, "--guidance", 2.5, "--sampler", "euler_a"]
    arguments += ["--schedule", "normal", "--width", 128, "--height", 64, "--batch", 2]
    arguments += ["--precision", "fp32", "--threads", 1, "--backend", "openvino", "--seed", 0]
    done = run("generate", "a circle", *arguments, "--bundle", tiny, "--json")
    assert (done.returncode, errors(done)) == (0, [])
    found = json.loads(done.stdout)
    assert set(found) == GENERATE_KEYS
    assert found["files"] == ["out-1.png", "out-2.png"]
    assert found["seeds"] == [0, 1]
    assert (found["width"], found["height"], found["steps"]) == (128, 64, 3)
    assert (found["backend"], found["precision"]) == ("openvino", "fp32")
    assert (found["sampler"], found["schedule"]) == ("euler_a", "normal")
    timings = found["timings"]
    assert timings["unet_calls"] == 3
    assert timings["total_ms"] > timings["unet_ms"] > 0
    assert sorted(os.listdir(tmp_path)) == ["out-1.png", "out-2.png"]


def test_diffusers_names_and_images_of_each_prompt(run: Run, tiny: Path) -> None:
    arguments = ["--num-inference-steps", 3, "--guidance-scale", 2, "--num-images-per-prompt", 2]
    done = run("generate", "a", "b", *arguments, "--seed", 4, "--bundle", tiny, "--json")
    found = json.loads(done.stdout)
    assert (found["steps"], found["guidance_scale"], found["seeds"]) == (3, 2.0, [4, 5, 6, 7])
    assert found["prompt"] == ["a", "a", "b", "b"]
    again = ["--from", "out-3.png", "--num-images-per-prompt", 2, "-o", "more.png"]
    assert run("generate", *again, "--bundle", tiny).stdout.count("seed") == 2


def test_progress_shows_on_a_terminal_only(run: Run, tiny: Path) -> None:
    leader, follower = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while piece := os.read(leader, 4096):
                shown.extend(piece)
        except OSError:  # the last writer closed the terminal
            return

    reader = threading.Thread(target=read)
    reader.start()
    done = run(
        "generate",
        "a circle",
        "--bundle",
        tiny,
        "--seed",
        1,
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    reader.join(timeout=30)
    os.close(leader)
    assert done.stdout == "out.png (seed 1)\n"
    assert b"generating" in shown and b"4/4" in shown
    quiet = run("generate", "a circle", "--bundle", tiny, "--seed", 1)
    assert "generating" not in quiet.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler", "magic"], "sampler: 'magic'"),
        (["--schedule", "magic"], "schedule: 'magic'"),
        (["--width", 100], "multiple of 8"),
        (["--width", 512], "nearest that it was built for is 128x64"),
        (["--steps", 0], "steps: 0"),
        (["--steps", 10**9], "steps: 1000000000"),
        (["--steps", "many"], "--steps"),
        (["--guidance", "nan"], "guidance_scale: nan"),
        (["--guidance", "inf"], "guidance_scale: inf"),
        (["--seed", -2], "seed: -2"),
        (["--seed", 2**64], "seed: 18446744073709551616"),
        (["--batch", 0], "batch_size: 0"),
        (["--precision", "fp8"], "precision: 'fp8'"),
        (["--threads", 0], "threads: 0"),
        (["--backend", "magic"], "backend: 'magic'"),
        (["--output", "out.bmp"], "output: 'out.bmp'"),
        (["--negative", "word " * 10_000], "negative_prompt: 40000 tokens"),
        (["--unknown"], "--unknown"),
    ],
    ids=lambda value: " ".join(map(str, value))[:30] if isinstance(value, list) else "",
)
def test_wrong_usage(
    call: Run, tiny: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    done = call("generate", "a circle", "--bundle", tiny, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (error,) = errors(done)
    assert error.startswith("error: ") and message in error
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_prompts_at_the_edges(run: Run, tiny: Path) -> None:
    assert run("generate", "", "--bundle", tiny, "--steps", 1).returncode == 0
    long = run("generate", "word " * 10_000, "--bundle", tiny)
    assert (long.returncode, "prompt: 40000 tokens" in long.stderr) == (2, True)


@pytest.mark.parametrize(
    "arguments", [["bogus"], ["generate"], ["generate", "a", "--steps", "b"], ["--bogus"]]
)
def test_wrong_command_line(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "--help" in done.stderr


def test_bad_bundles(run: Run, tiny: Path, tmp_path: Path) -> None:
    import shutil

    (tmp_path / "text").write_text("no bundle")
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    weights = copy / "unet.bin"
    weights.write_bytes(weights.read_bytes()[::-1] + b"more")
    manifest = copy / "manifest.json"
    for bundle, message in [("missing", "does not exist"), ("text", "not a folder")]:
        done = run("generate", "a circle", "--bundle", bundle)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    for command in (["verify"], ["inspect"], ["generate", "a circle", "--bundle"]):
        done = run(*command, copy)
        assert (done.returncode, "unet.bin" in done.stderr) == (1, True), done.stderr
    manifest.write_text(manifest.read_text().replace('"unet.bin"', '"../text"'))
    done = run("verify", copy)
    assert (done.returncode, "'../text'" in done.stderr) == (1, True), done.stderr
    manifest.write_text('{"schema_version": 7}')
    done = run("verify", copy)
    assert (done.returncode, "schema_version '7'" in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "out.png").exists()


def test_backend_that_cannot_run_the_bundle(run: Run, tiny: Path) -> None:
    done = run("generate", "a circle", "--bundle", tiny, "--backend", "torch")
    assert (done.returncode, done.stdout) == (1, "")
    assert "torch" in done.stderr and "Traceback" not in done.stderr


def test_output_folder_missing(run: Run, tiny: Path, tmp_path: Path) -> None:
    done = run("generate", "a circle", "--bundle", tiny, "-o", "no/out.png")
    assert (done.returncode, "'no' does not exist" in done.stderr) == (1, True)
    assert os.listdir(tmp_path) == []


def test_output_folder_that_takes_no_files(run: Run, tiny: Path) -> None:
    done = run("generate", "a circle", "--bundle", tiny, "-o", "/proc/out.png")
    assert (done.returncode, "cannot be written" in done.stderr) == (1, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user without root's rights")
def test_output_folder_read_only(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fixed"
    folder.mkdir(mode=0o555)
    done = run("generate", "a circle", "--bundle", tiny, "-o", "fixed/out.png")
    assert (done.returncode, "cannot be written" in done.stderr) == (1, True)


def test_disk_full(run: Run, tiny: Path, tmp_path: Path) -> None:
    import resource

    (tmp_path / "out-1.png").write_bytes(b"old")
    done = run(
        *("generate", "a circle", "--bundle", tiny, "--batch", 2),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
    )
    assert (done.returncode, "cannot be written" in done.stderr) == (1, True), done.stderr
    assert os.listdir(tmp_path) == ["out-1.png"]
    assert (tmp_path / "out-1.png").read_bytes() == b"old"


def test_full_standard_output(run: Run, tiny: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run("samplers", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, "standard output" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_interrupt(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdengine", "--verbose", "generate", "a circle"]
    command += ["--bundle", str(tiny), "--steps", "1000", "--batch", "256"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests themselves run in the background, interrupts start out ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        while "backend auto" not in (line := process.stderr.readline()):
            assert line, "the command ended before it began to work"
        process.send_signal(signal.SIGINT)
        rest, output = process.stderr.read(), process.stdout.read()
    assert (process.returncode, output) == (130, "")
    assert rest.startswith("error: interrupted") and "Traceback" not in rest
    assert os.listdir(tmp_path) == []


def test_inspect_and_verify(run: Run, tiny: Path) -> None:
    shown = run("inspect", tiny).stdout
    assert "64x64, 128x64" in shown
    assert "sample float32 [batch, 4, height/8, width/8]" in shown
    assert json.loads(run("inspect", tiny, "--json").stdout)["name"] == "tiny"
    assert "all as built" in run("verify", tiny).stdout


def test_samplers(run: Run) -> None:
    shown = run("samplers").stdout
    listed = json.loads(run("samplers", "--json").stdout)
    names = {entry["name"] for kind in ("samplers", "schedules") for entry in listed[kind]}
    assert {"ddim", "euler", "euler_a", "dpmpp_2m", "normal", "karras"} <= names
    assert all(name in shown for name in names)


def test_doctor(run: Run) -> None:
    done = run("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ready"] else 1)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["python"]["present"] and checks["openvino"]["present"]
    assert checks["native extension"]["present"]
    for check in found["checks"]:
        assert check["present"] or (check["cost"] and check["remedy"]), check["name"]
    shown = run("doctor").stdout
    assert all(name in shown for name in checks)


def test_module_is_the_command(run: Run) -> None:
    command = [sys.executable, "-I", "-m", "sdengine", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").stdout


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout == f"sdengine {sdengine.__version__}\n"
    listed = run("--help").stdout
    for command in (
        "generate",
        "build",
        "inspect",
        "verify",
        "samplers",
        "doctor",
        "bench",
        "train",
    ):
        assert command in listed
    assert run().stdout == listed
    assert "--negative" in run("generate", "--help").stdout


def test_missing_build_world_names_the_extra(run: Run, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    for command in (
        ["build", "demo", "-o", "bundle"], ["train", "vae", "run"], ["inspect", "demo-depth"],
    ):  # fmt: skip
        done = run(*command, env=environment)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "pip install 'sdengine[" in done.stderr and "Traceback" not in done.stderr


def test_image_again_from_its_metadata(run: Run, tiny: Path, tmp_path: Path) -> None:
    options = ["--sampler", "euler_a", "--steps", 3, "--seed", 5, "--batch", 2, "--noise", "cuda"]
    options += ["--variation-seed", 3, "--variation-strength", 0.25, "--guidance-rescale", 0.5]
    done = run("generate", "a (circle:1.2) [b|c]", *options, "--bundle", tiny, "-o", "a.png")
    assert done.returncode == 0, done.stderr
    again = run("generate", "--from", "a-2.png", "--bundle", tiny, "-o", "b.png")
    assert (again.returncode, "warning" in again.stderr) == (0, False), again.stderr
    assert (tmp_path / "a-2.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    other = run("generate", "--from", "a-2.png", "--bundle", tiny, "-o", "c.png", "--seed", 60)
    assert other.returncode == 0
    assert (tmp_path / "a-2.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_bands_of_the_vae_are_taken_from_the_image(run: Run, tmp_path: Path) -> None:
    options = ["--steps", 2, "--seed", 5, "--precision", "bf16"]
    made = run("generate", "a star", *options, "--vae-tiles", "always", "-o", "a.png")
    assert made.returncode == 0 and "was computed in bands" in made.stderr
    again = run("generate", "--from", "a.png", "-o", "b.png")
    assert (again.returncode, "warning" in again.stderr) == (0, False), again.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    other = run("generate", "--from", "a.png", "-o", "c.png", "--vae-tiles", "never")
    assert "not the VAE's maps whole, which rounds differently" in other.stderr


def test_nothing_to_make_an_image_from(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    done = run("generate", "--from", "x.png", "--bundle", tiny)
    assert (done.returncode, "not a usable picture" in done.stderr) == (2, True), done.stderr
    assert os.listdir(tmp_path) == ["x.png"]


def test_several_prompts(run: Run, tiny: Path, tmp_path: Path) -> None:
    done = run("generate", "a circle", "a square", "--bundle", tiny, "--seed", 1, "--json")
    assert json.loads(done.stdout)["prompt"] == ["a circle", "a square"]
    assert sorted(os.listdir(tmp_path)) == ["out-1.png", "out-2.png"]
