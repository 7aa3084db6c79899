"""Guidance inside an interval of the steps: what it computes, and which rows it leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_bundle import SCALING_FACTOR, SCHEDULER, Array, make_tiny_bundle
from support.tiny_bundle import unet_reference as unet
from support.tiny_bundle import vae_decoder_reference as vae_decoder

from sdengine.backends.base import Module
from sdengine.engine import Engine
from sdengine.loading import load
from sdengine.pipeline.loaded_networks import Networks
from sdengine.pipeline.row_plan import lay_out_rows
from sdengine.prompt.plan import ImageRows
from sdengine.samplers import NoiseSchedule, build_program
from sdengine.samplers.noise import CpuGenerator

BASE: dict[str, Any] = {"seed": 3, "steps": 4, "guidance_scale": 3.0, "schedule": "normal"}
INNER = (0.25, 0.75)  # steps 1 and 2 of 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    with load(tiny, precision="fp32", threads=1) as engine:
        yield engine


class Counted:
    """A U-Net that notes how many rows each of its runs computes."""

    def __init__(self, module: Module, rows: list[int]) -> None:
        self._module = module
        self._rows = rows
        self.inputs, self.outputs = module.inputs, module.outputs

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self._rows.append(len(inputs["sample"]))
        return self._module.run(inputs)

    def close(self) -> None:
        self._module.close()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each of the U-Net's runs, in their order."""
    found: list[int] = []
    get = Networks.get

    def counted(self: Networks, network: str, *sizes: int, **options: Any) -> Any:
        module = get(self, network, *sizes, **options)
        return Counted(module, found) if network == "unet" else module

    monkeypatch.setattr(Networks, "get", counted)
    return found


def by_hand(
    engine: Engine, sampler: str, steps: int, scale: float, guided: range, rescale: float = 0.0
) -> Array:
    """Follow a request with calls of the U-Net in float64, two of them where it is guided."""
    encoder = engine.bundle.manifest.architecture.text_encoders[0]
    table = engine.bundle.token_table(encoder).astype(np.float64)
    tokenizer = engine._planner.conditioner.planner.tokenizers["text_encoder"]
    ids = [[512, *tokenizer.encode(text), 513] for text in ("blue", "a red circle")]
    blue, red = (2 * table[row + [513] * (77 - len(row))][None] for row in ids)
    program = build_program(sampler, "normal", steps, NoiseSchedule.from_config(SCHEDULER))
    generator = CpuGenerator(BASE["seed"])
    registers = np.zeros((program.num_registers, 1, 4, 8, 8))
    registers[0] = program.init_scale * generator.randn((1, 4, 8, 8))
    for k, needs_noise in enumerate(program.needs_noise):
        read, t = program.c_in[k] * registers[0], np.full(1, program.t[k])
        output = unet(read, t, red)
        if int(program.step[k]) in guided:
            uncond, cond = unet(read, t, blue), output
            output = uncond + scale * (cond - uncond)
            if rescale:
                share = cond.std(ddof=1) / output.std(ddof=1)
                output = output * (rescale * share + 1 - rescale)
        updated = np.tensordot(program.A[k], registers, axes=1)
        updated += np.multiply.outer(program.b[k], output)
        if needs_noise:
            updated += np.multiply.outer(program.d[k], generator.randn((1, 4, 8, 8)))
        registers = updated
    image = vae_decoder(registers[0] / SCALING_FACTOR)[0]
    pixels: Array = (np.clip(image / 2 + 0.5, 0, 1) * 255).transpose(1, 2, 0)
    return pixels


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "heun", "dpm2", "dpmpp_2m", "pndm"])
@pytest.mark.parametrize("interval", [INNER, (0.0, 0.5), (0.5, 1.0), (0.0, 0.0)])
def test_the_picture_is_that_of_separate_calls(
    engine: Engine, sampler: str, interval: tuple[float, float]
) -> None:
    given = {**BASE, "sampler": sampler, "guidance_interval": interval}
    request = engine.request("a red circle", "blue", **given)
    found = engine.run(request).arrays[0]
    expected = by_hand(engine, sampler, 4, 3.0, request.guided_steps)
    assert np.abs(found - expected).max() <= 0.51 + 0.05  # rounding, fp32 networks
    throughout = by_hand(engine, sampler, 4, 3.0, range(4))
    assert np.abs(found - throughout).max() > 3


def test_rescale_is_a_part_of_guidance(engine: Engine) -> None:
    given = {**BASE, "sampler": "euler", "guidance_interval": INNER, "guidance_rescale": 0.7}
    found = engine.generate("a red circle", "blue", **given).arrays[0]
    expected = by_hand(engine, "euler", 4, 3.0, range(1, 3), rescale=0.7)
    assert np.abs(found - expected).max() <= 0.51 + 0.05


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("euler", [1, 2, 2, 1]),
        ("dpmpp_2m", [1, 2, 2, 1]),
        # Two evaluations a step, but one in the last.
        ("heun", [1, 1, 2, 2, 2, 2, 1]),
        ("dpm2", [1, 1, 2, 2, 2, 2, 1]),
        ("dpmpp_2s_a", [1, 1, 2, 2, 2, 2, 1]),
    ],
)
def test_evaluations_outside_have_one_row(
    engine: Engine, rows: list[int], sampler: str, expected: list[int]
) -> None:
    engine.generate("a", sampler=sampler, guidance_interval=INNER, **BASE)
    assert rows == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [2] * 4),
        ({"guidance_interval": (0.0, 1.0)}, [2] * 4),
        ({"guidance_interval": (0.5, 0.5)}, [1] * 4),
        ({"guidance_interval": (0.0, 0.5)}, [2, 2, 1, 1]),
        ({"guidance_interval": (0.5, 1.0)}, [1, 1, 2, 2]),
        ({"guidance_interval": INNER, "guidance_scale": 1.0}, [1] * 4),
        ({"guidance_interval": INNER, "batch_size": 3}, [2, 4, 4, 2, 1, 2, 2, 1]),
        ({"guidance_interval": INNER, "guidance_rescale": 0.5}, [1, 2, 2, 1]),
        ({"guidance_interval": INNER, "prompt": "[a:b:2]"}, [1, 2, 2, 1]),
        ({"guidance_interval": INNER, "prompt": "[b|c]", "negative_prompt": "[d|e]"}, [1, 2, 2, 1]),
        # Parts are weighed against the negative at every step.
        ({"guidance_interval": INNER, "prompt": "a AND b"}, [3] * 4),
    ],
)  # fmt: skip
def test_rows_of_requests(
    engine: Engine, rows: list[int], given: dict[str, Any], expected: list[int]
) -> None:
    engine.generate(**{"prompt": "a", "sampler": "euler", **BASE, **given})
    assert rows == expected


def test_all_steps_is_what_is_done_anyway(engine: Engine) -> None:
    for prompt in ("a", "a AND b:0.5", "a [b|c]"):
        plain = engine.generate(prompt, sampler="euler_a", **BASE)
        whole = engine.generate(prompt, sampler="euler_a", guidance_interval=(0, 1), **BASE)
        assert np.array_equal(plain.arrays[0], whole.arrays[0])
        assert plain.request == whole.request


def test_no_step_is_guidance_scale_one(engine: Engine) -> None:
    given = {**BASE, "sampler": "euler"}
    for prompt in ("a", "a AND b:0.5"):
        none = engine.generate(prompt, "x", guidance_interval=(0.5, 0.5), **given)
        one = engine.generate(prompt, "x", **{**given, "guidance_scale": 1.0})
        assert np.array_equal(none.arrays[0], one.arrays[0])


def test_parts_joined_by_and_outside_count_as_at_scale_one(engine: Engine) -> None:
    """Steps of Euler's method are linear in the guided output: latents say which scale it had."""
    runs = {
        name: [np.array(step.latents) for step in engine.stream("a AND b:0.5", "x", **changes)]
        for name, changes in {
            "one": {**BASE, "sampler": "euler", "guidance_scale": 1.0},
            "all": {**BASE, "sampler": "euler"},
            "late": {**BASE, "sampler": "euler", "guidance_interval": (0.5, 1.0)},
            "early": {**BASE, "sampler": "euler", "guidance_interval": (0.0, 0.5)},
        }.items()
    }
    for k in (0, 1):
        np.testing.assert_array_equal(runs["late"][k], runs["one"][k])
        np.testing.assert_array_equal(runs["early"][k], runs["all"][k])
    assert not np.allclose(runs["late"][2], runs["one"][2], atol=1e-3)
    assert not np.allclose(runs["early"][2], runs["all"][2], atol=1e-3)


def test_a_batch_equals_its_images_alone(engine: Engine) -> None:
    prompts, given = ["a circle", "b [c|d]", "e"], {**BASE, "sampler": "euler_a"}
    del given["seed"]
    batch = engine.generate(prompts, "x", seed=[7, 3, 99], guidance_interval=INNER, **given)
    for prompt, seed, array in zip(prompts, (7, 3, 99), batch.arrays, strict=True):
        alone = engine.generate(prompt, "x", seed=seed, guidance_interval=INNER, **given).arrays[0]
        assert np.abs(array.astype(int) - alone).max() <= 1


def test_previews_of_steps_without_guidance(engine: Engine) -> None:
    given = {**BASE, "sampler": "euler", "guidance_interval": INNER}
    steps = list(engine.stream("a circle", preview_every=1, **given))
    assert all(step.preview is not None for step in steps)
    assert steps[-1].result is not None
    plain = engine.generate("a circle", **given).arrays[0]
    assert np.array_equal(steps[-1].result.arrays[0], plain)


@pytest.mark.parametrize("kind", ["sdxl", "refiner"])
def test_other_kinds_of_unet(tmp_path: Path, rows: list[int], kind: str) -> None:
    """What XL's networks are told beside the prompt goes with the rows that are left."""
    with load(make_tiny_bundle(tmp_path / kind, kind=kind), precision="fp32") as engine:
        given = {**BASE, "sampler": "euler", "aesthetic_score": 60.0}
        none = engine.generate("a", guidance_interval=(0.5, 0.5), **given).arrays[0]
        one = engine.generate("a", **{**given, "guidance_scale": 1.0}).arrays[0]
        assert np.array_equal(none, one)
        inner = engine.generate("a", guidance_interval=INNER, **given).arrays[0]
        assert rows == [1] * 8 + [1, 2, 2, 1]
        assert not np.array_equal(inner, none)


def test_a_distilled_unet_has_no_half_to_leave_out_and_says_so(
    tmp_path: Path, rows: list[int]
) -> None:
    with load(make_tiny_bundle(tmp_path / "lcm", kind="lcm"), precision="fp32") as engine:
        plain = engine.generate("a", **BASE)
        inner = engine.generate("a", guidance_interval=INNER, **BASE)
    assert np.array_equal(plain.arrays[0], inner.arrays[0])
    assert plain.warnings == ()
    (line,) = inner.warnings
    assert line.startswith("guidance_interval: it is not applied")
    assert rows == [1] * 8


def test_rows_are_laid_out_once_for_equal_steps() -> None:
    image: ImageRows = (0, ((1, 1.0),))
    plans = lay_out_rows([[image, image]] * 4, range(2), range(1, 3))
    assert plans[0] is plans[3] is not plans[1] is plans[2]
    assert [plan.rows for plan in plans] == [(1, 1), (0, 0, 1, 1), (0, 0, 1, 1), (1, 1)]
    assert [plan.has_negative for plan in plans] == [plan.is_guided for plan in plans]
    joined: ImageRows = (0, ((1, 1.0), (2, 0.5)))
    plans = lay_out_rows([[joined, image]] * 2, range(2), range(1))
    assert [plan.rows for plan in plans] == [(0, 0, 1, 1, 2, 1)] * 2
    assert [plan.is_guided for plan in plans] == [True, False]
