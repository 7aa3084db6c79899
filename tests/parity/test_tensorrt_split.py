"""Guidance rows split over two GPUs, on a stand-in for TensorRT's run time."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_tensorrt

import sdengine
from sdengine.backends.tensorrt.engine import GpuEngine
from sdengine.backends.tensorrt.session import TensorRtSession
from sdengine.backends.tensorrt.unet import GpuUNet
from sdengine.errors import Cancelled, ConfigError, DeviceError

PROMPT = "a large red circle on a blue background"
USUAL: dict[str, Any] = {"prompt": PROMPT, "steps": 4, "seed": 7, "sampler": "euler"}
ALIKE = ("NVIDIA L4", "NVIDIA L4", "NVIDIA L40S")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_tensorrt.install(monkeypatch)
        place = tmp_path_factory.mktemp("bundles") / "demo"
        options: dict[str, Any] = {"target": "tensorrt-rtx", "gpus": ["rtx4090"], "batch": 2}
        sdengine.build("demo", place, resolutions=(128,), **options)
        return place


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setattr(fake_tensorrt.Gpu, "names", ALIKE)


@pytest.fixture
def rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the U-Net's rows evaluated one by one where it is not split."""
    profile_of = GpuEngine.profile_of

    def chosen(self: GpuEngine, shapes: Mapping[str, tuple[int, ...]]) -> int:
        if self.name == "unet":
            shapes = {name: (1, *shape[1:]) for name, shape in shapes.items()}
        return profile_of(self, shapes)

    monkeypatch.setattr(GpuEngine, "profile_of", chosen)
    monkeypatch.setattr(GpuUNet, "refuses", lambda self, kind: "for the comparison")


def pictures(engine: sdengine.Engine, **options: Any) -> list[Any]:
    return list(engine.generate(**{**USUAL, **options}).arrays)


def psnr_db(found: Any, wanted: Any) -> float:
    error = np.square(found.astype(np.float64) - wanted.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers and noise": {"sampler": "dpmpp_2m_sde"},
    "an interval": {"guidance_interval": (0.3, 0.7)},
    "without guidance": {"guidance_scale": 1.0},
    "a batch": {"batch_size": 2},
    "three rows": {"prompt": f"{PROMPT} AND a green star:0.5"},
    "tiles": {"width": 192, "tiled_diffusion": True},
}


@pytest.mark.usefixtures("rows_alone")
@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_rows_alone(bundle: Path, case: str) -> None:
    with sdengine.load(bundle) as engine:
        wanted = pictures(engine, **CASES[case])
    with sdengine.load(bundle, split_guidance="0/1") as engine:
        found = pictures(engine, **CASES[case])
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_those_of_one_gpu(bundle: Path, case: str) -> None:
    with sdengine.load(bundle) as engine:
        wanted = pictures(engine, **CASES[case])
    with sdengine.load(bundle, split_guidance="0/1") as engine:
        found = pictures(engine, **CASES[case])
    assert min(map(psnr_db, found, wanted)) >= 50


def test_each_gpu_evaluates_its_half_in_its_own_thread(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ran = GpuUNet.run, list[tuple[str, int]]()

    def noted(self: GpuUNet, inputs: Any) -> Any:
        ran.append((threading.current_thread().name, int(self.inputs[0].shape[0])))
        return run(self, inputs)

    monkeypatch.setattr(GpuUNet, "run", noted)
    with sdengine.load(bundle, split_guidance="0/1") as engine:
        pictures(engine, batch_size=2, guidance_interval=(0.0, 0.5))
        first, second = (one for one in fake_tensorrt.made("unet") if one.runs)
        texts = fake_tensorrt.made("text_encoder")
        assert fake_tensorrt.Gpu.opened == [0, 1]
        assert set(ran) == {("sdengine-gpu-0_0", 2), ("sdengine-gpu-1_0", 2),
                            ("sdengine-gpu-0_0", 1), ("sdengine-gpu-1_0", 1)}  # fmt: skip
        assert first.rows_run == second.rows_run
        # What the second GPU does not run, it only measured.
        assert [one.runs > 0 for one in texts] == [True, False]
        session: Any = engine.session
        assert len(session._main._kept) == 3 and not session._halves[1].session._kept
    assert not [t for t in threading.enumerate() if t.name.startswith("sdengine-gpu")]


def test_a_half_that_fails_or_is_cancelled_ends_the_request_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sdengine.load(bundle, split_guidance="0/1") as engine:
        wanted = pictures(engine)
        run = GpuUNet.run

        def fail(self: GpuUNet, inputs: Any) -> Any:
            if threading.current_thread().name == "sdengine-gpu-1_0":
                raise DeviceError("the second GPU is gone")
            return run(self, inputs)

        monkeypatch.setattr(GpuUNet, "run", fail)
        with pytest.raises(DeviceError, match="the second GPU is gone"):
            pictures(engine)
        monkeypatch.setattr(GpuUNet, "run", run)
        cancel = threading.Event()
        with pytest.raises(Cancelled):
            engine.generate(**USUAL, cancel=cancel, progress=lambda step: cancel.set())
        assert np.array_equal(pictures(engine), wanted)


def test_closing_frees_both(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[weakref.ref[Any]] = []
    begin = TensorRtSession.__init__

    def noted(self: TensorRtSession, *given: Any, **named: Any) -> None:
        opened.append(weakref.ref(self))
        begin(self, *given, **named)

    monkeypatch.setattr(TensorRtSession, "__init__", noted)
    engine = sdengine.load(bundle, split_guidance="0/1")
    pictures(engine)
    engines = [weakref.ref(made) for made in fake_tensorrt.Engine.made]
    fake_tensorrt.Engine.made.clear()
    for _ in range(2):
        engine.close()
    gc.collect()
    assert len(engines) == 7 and not [one for one in engines if one() is not None]
    assert len(opened) == 2
    with pytest.raises(DeviceError, match="was closed"):
        pictures(engine)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("0", "the numbers of two GPUs .* such as '0/1'"),
        ("numa", "the numbers of two GPUs"),
        ("0-1/2", "the numbers of two GPUs"),
        ("1/1", "the numbers of two GPUs"),
        ("0/3", r"There are: 0 \(NVIDIA L4\), 1 \(NVIDIA L4\), 2 \(NVIDIA L40S\)"),
        ("1/2", "two GPUs of one model, whose kernels give the same bits"),
    ],
)
def test_what_names_no_two_gpus(bundle: Path, option: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"split_guidance: '{option}' is not accepted.*{said}"):
        sdengine.load(bundle, split_guidance=option)
    assert not fake_tensorrt.Gpu.opened


def test_the_gpus_are_named_once(bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"device: 0 .* None with split_guidance"):
        sdengine.load(bundle, device=0, split_guidance="0/1")
