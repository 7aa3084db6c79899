"""A limit to the GPU's memory: what is refused, when, and with which figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_tensorrt

import sdengine
from sdengine import _native
from sdengine.backends.memory_budget import MemoryBudget
from sdengine.backends.tensorrt.arena import GRAPH_BYTES
from sdengine.backends.tensorrt.gpu_budget import GpuBudget
from sdengine.backends.tensorrt.session import TensorRtSession
from sdengine.cli.main import main
from sdengine.errors import BundleError, OutOfMemoryError

OPTIONS: dict[str, Any] = {"steps": 2, "seed": 7, "sampler": "euler"}
PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_tensorrt.install(monkeypatch)
        place = tmp_path_factory.mktemp("bundles") / "demo"
        options: dict[str, Any] = {"target": "tensorrt-rtx", "gpus": ["rtx4090"], "batch": 2}
        sdengine.build("demo", place, resolutions=(128, 256), **options)
        return place


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)


def budget_of(bundle: Path, **options: Any) -> MemoryBudget:
    with sdengine.load(bundle, **options) as engine:
        return engine.session.budget


def scratch_of(budget: MemoryBudget) -> list[dict[str, int]]:
    return [{n: b for n, b in size.scratch_bytes.items() if b is not None} for size in budget.needs]


def test_builds_record_the_scratch_that_plans_foretell(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    recorded = {n: e["options"]["scratch_bytes"] for n, e in manifest["networks"].items()}
    assert all(sizes.keys() == {"128x128", "256x256"} for sizes in recorded.values())
    assert recorded["text_encoder"]["128x128"] == recorded["text_encoder"]["256x256"]
    small, large = scratch_of(budget_of(bundle))
    for network in ("unet", "vae_decoder"):
        assert small[network] == recorded[network]["128x128"] < large[network]
    from sdengine.building.memory_estimate import estimate_memory
    from sdengine.bundle.reader import open_bundle
    from sdengine.checkpoints.architecture_source import architecture_of_bundle

    opened = open_bundle(bundle).manifest
    source = architecture_of_bundle(opened.name, opened.architecture)
    planned = estimate_memory(source, resolutions=[128, 256], batch=2)
    assert [size.scratch_bytes for size in planned.sizes] == [small, large]


def test_nothing_is_allocated_before_the_plan_is_refused(bundle: Path) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        sdengine.load(bundle, memory_bytes=10**6)
    message = str(caught.value)
    assert "128x128 takes" in message and "of weights" in message and "of scratch (" in message
    assert "of latents, inputs and images" in message and "kept for captured graphs" in message
    assert "1 MB may be used (memory_bytes)" in message
    assert "--resolutions" in message and "--batch" in message
    assert fake_tensorrt.Engine.made == []
    assert fake_tensorrt.Gpu.device.num_allocations == 0


def test_the_gpus_own_memory_is_a_limit_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, limit_bytes=2 * 10**6)
    with pytest.raises(OutOfMemoryError, match=r"2 MB may be used \(free on the GPU\)"):
        sdengine.load(bundle)
    with pytest.raises(OutOfMemoryError, match=r"1 MB may be used \(memory_bytes\)"):
        sdengine.load(bundle, memory_bytes=10**6)


def total_of(engine: sdengine.Engine, side: int) -> int:
    """Return what a size takes by the figures of the open engines."""
    (found,) = [size for size in engine.session.budget.needs if size.width == side]
    return found.total_bytes(engine.low_memory)


def test_a_limit_leaves_the_sizes_that_fit(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = []
    make = _native.MemoryPool

    def make_pool(sets: Any, cap_bytes: int, device: _native.Device) -> _native.MemoryPool:
        pools.append(
            (max(_native.plan_regions(regions)[0] for regions in sets.values()), cap_bytes)
        )
        return make(sets, cap_bytes, device)

    with sdengine.load(bundle) as engine:
        expected = engine.generate(PROMPT, width=128, height=128, **OPTIONS).arrays[0]
        small, large = total_of(engine, 128), total_of(engine, 256)
    assert small < large
    fake_tensorrt.Engine.made.clear()
    monkeypatch.setattr(_native, "MemoryPool", make_pool)
    with sdengine.load(bundle, memory_bytes=large - 1) as engine:
        assert np.array_equal(
            engine.generate(PROMPT, width=128, height=128, **OPTIONS).arrays[0], expected
        )
        with pytest.raises(OutOfMemoryError, match=r"256x256 takes .* a size of 128x128"):
            engine.generate(PROMPT, width=256, height=256, **OPTIONS)
        session = engine.session
        assert isinstance(session, TensorRtSession) and session.arena is not None
        assert list(session.arena.sets) == ["128x128"]
        ((reserved, cap),) = pools
        assert 0 < reserved <= cap
        assert cap + small - reserved == large - 1
    with sdengine.load(bundle, memory_bytes=large) as engine:
        engine.generate(PROMPT, width=256, height=256, **OPTIONS)


def test_engines_may_say_more_than_was_foretold(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = fake_tensorrt.Engine.get_device_memory_size_for_profile_v2
    monkeypatch.setattr(
        fake_tensorrt.Engine,
        "get_device_memory_size_for_profile_v2",
        lambda engine, index: told(engine, index) + 10**9,
    )
    refused = pytest.raises(OutOfMemoryError, match=r"1\.\d+ GB of scratch")
    with sdengine.load(bundle, memory_bytes=5 * 10**8) as engine, refused:
        engine.generate(PROMPT, **OPTIONS)
    assert fake_tensorrt.Gpu.device.num_allocations == 0


def test_what_contexts_take_is_measured_and_refused_late_but_clearly(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**OPTIONS, "width": 128, "height": 128}
    with sdengine.load(bundle) as engine:
        engine.generate(PROMPT, **options)
        planned = total_of(engine, 128)
    monkeypatch.setattr(fake_tensorrt.Engine, "context_bytes", 30 << 20)
    monkeypatch.setattr(fake_tensorrt.Engine, "first_run_bytes", 20 << 20)
    with caplog.at_level("INFO"), sdengine.load(bundle) as engine:  # of what the GPU has
        engine.generate(PROMPT, **options)
        taken = {"text_encoder": 50 << 20, "unet": 50 << 20, "vae_decoder": 50 << 20}
        budget = engine.session.budget
        assert isinstance(budget, GpuBudget) and budget.overhead_bytes == taken
        assert "unet: context, kernels and graphs take 52.4 MB" in caplog.text
    # The allowance for graphs is part of the plan; what exceeds it has to fit too.
    spare = 150 * (1 << 20) - GRAPH_BYTES
    with sdengine.load(bundle, memory_bytes=planned + spare) as engine:
        engine.generate(PROMPT, **options)
        assert total_of(engine, 128) == planned + spare
    late = r"128x128 takes .* 0\.157 GB that contexts, kernels and graphs were measured to take"
    with sdengine.load(bundle, memory_bytes=planned + spare - 1) as engine:
        with pytest.raises(OutOfMemoryError, match=late):
            engine.generate(PROMPT, **options)
        runs = fake_tensorrt.made("unet")[-1].runs
        with pytest.raises(OutOfMemoryError, match=late):  # and from then on at once
            engine.generate(PROMPT, **options)
        assert fake_tensorrt.made("unet")[-1].runs == runs
    # One after the other, they fit.
    with sdengine.load(bundle, memory_bytes=planned, low_memory=True) as engine:
        engine.generate(PROMPT, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda networks: networks.pop("unet"), "unet"),
        (lambda networks: networks.pop("vae_decoder"), "vae_decoder"),
        (lambda networks: networks["unet"]["inputs"].pop(0), "'sample' is missing or not"),
        (lambda networks: networks["unet"]["inputs"][0]["shape"].pop(), "'sample' is missing"),
        (lambda networks: networks["unet"]["inputs"][0].update(dtype="int64"), "of floats"),
        (lambda networks: networks["unet"]["inputs"][1].update(shape=["depth"]), "'depth' is unkn"),
    ],
)
def test_bundles_that_no_plan_can_be_made_of(
    bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    altered = shutil.copytree(bundle, tmp_path / "altered")
    manifest = json.loads((altered / "manifest.json").read_text())
    change(manifest["networks"])
    (altered / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        sdengine.load(altered)


def test_the_command_takes_a_limit(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(tmp_path / "a.png")
    arguments = ["generate", PROMPT, "--steps", "2", "-o", picture, "--bundle", str(bundle)]
    assert main([*arguments, "--memory", "1MB"]) == 1
    assert "1 MB may be used (memory_bytes)" in capsys.readouterr().err
    assert main([*arguments, "--memory", "lots"]) == 2
    assert main([*arguments, "--memory", "1GiB", "--low-memory"]) == 0
    assert Path(picture).is_file()
