"""The command with guidance rows split over two processors."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine.benchmarks.seeded_hypernetworks import write
from sdengine.bundle.reader import open_bundle

Run = Callable[..., "subprocess.CompletedProcess[str]"]
CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="two processors cannot be had")
PLACES = "/".join(map(str, CPUS[:2]))
OPTIONS = ["--seed", 7, "--steps", 3, "--width", 64, "--height", 64]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return np.asarray(image).tobytes()


def test_pictures_are_the_same_to_the_byte(run: Run, tmp_path: Path) -> None:
    plain = run("generate", "a red circle", *OPTIONS, "--threads", 1, "-o", "plain.png")
    assert plain.returncode == 0, plain.stderr
    split = ["--split-guidance", PLACES]
    done = run("generate", "a red circle", *OPTIONS, *split, "-o", "split.png")
    assert (done.returncode, done.stdout) == (0, "split.png (seed 7)\n"), done.stderr
    again = run("generate", "--from", "plain.png", *split, "-o", "again.png")  # of one thread
    assert again.returncode == 0 and "warning" not in again.stderr
    wanted = pixels(tmp_path / "plain.png")
    assert pixels(tmp_path / "split.png") == pixels(tmp_path / "again.png") == wanted


def test_wrong_usage(call: Run, tiny: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[object], str]] = [
        (["--split-guidance", "0"], "split_guidance: '0' is not accepted; expected None, 'numa'"),
        (["--split-guidance", f"{CPUS[0]}/{CPUS[0]}"], "no processor in common"),
        (["--split-guidance", PLACES, "--threads", 1], "threads: 1 is not accepted; expected 2"),
        (["--split-guidance", "0/1", "--bundle", tiny], "None with backend openvino"),
    ]
    for arguments, message in cases:
        done = call("generate", "a circle", *arguments)
        assert done.returncode == 2 and message in done.stderr
    assert os.listdir(tmp_path) == []


def test_hypernetworks_are_in_both_halves(tmp_path: Path) -> None:
    unet = open_bundle("demo").manifest.architecture.unet
    net = write(tmp_path / "net.pt", [unet.cross_attention_dim], seed=1, std=0.05)[0]
    given: dict[str, Any] = {"seed": 3, "steps": 2, "width": 64, "height": 64}
    pictures = []
    for places in (None, PLACES):
        with sdengine.load("demo", split_guidance=places) as engine:
            for nets in ({}, {net: 0.8}, {}):
                found = engine.generate("a red circle", hypernetworks=nets, **given)
                pictures.append(found.arrays[0].tobytes())
    assert pictures[:3] == pictures[3:] and pictures[0] == pictures[2] != pictures[1]
