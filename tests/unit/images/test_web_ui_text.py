"""The `parameters` text: ours comes back, those of other tools are read as far as possible."""

from __future__ import annotations

from typing import Any

import pytest

from sdengine.images.provenance import Provenance
from sdengine.images.web_ui_text import parameters_text, parse_parameters
from sdengine.request.request import FIELDS, Request

FULL: dict[str, Any] = {
    "prompt": 'a "red" circle, (blue:1.2)\nsecond line: x',
    "negative_prompt": "ugly,\n Steps: 3",
    "width": 64,
    "height": 128,
    "steps": 7,
    "guidance_scale": 3.1234567890123,
    "guidance_rescale": 0.25,
    "guidance_interval": (1e-05, 0.30000000000000004),
    "sampler": "euler_a",
    "schedule": "beta",
    "eta": 0.5,
    "s_churn": 1e-7,
    "s_tmin": 0.1,
    "s_tmax": 1e6,
    "s_noise": 1.25,
    "seed": 2**63 + 1,
    "variation_seed": 5,
    "variation_strength": 0.125,
    "seed_width": 64,
    "seed_height": 256,
    "noise": "cuda",
    "emphasis": "no_norm",
    "clip_skip": 2,
    "hires": 1.75,
    "hires_upscaler": "latent_bicubic_antialiased",
    "hires_strength": 0.6123456789,
    "hires_steps": 9,
    "hires_sampler": "dpmpp_2m_sde",
    "hires_schedule": "sgm_uniform",
    "hires_prompt": "a cat: larger,\nHires steps: 3",
    "hires_negative_prompt": 'blur, "noise"',
    "decoder": "tiny",
    "seamless": "xy",
}


def test_every_field_with_a_label_is_tried() -> None:
    labelled = {name for name, info in FIELDS.items() if info.labels}
    assert labelled | {"prompt", "negative_prompt"} == FULL.keys()
    defaults = Request("").__dict__
    assert all(value != defaults[name] for name, value in FULL.items())


def test_own_text_comes_back() -> None:
    text = parameters_text(
        Request(**FULL), Provenance(model='a "model", v1:2', model_hash="ab" * 32)
    )
    found = parse_parameters(text)
    counted = {**FULL, "web_ui_clip_skip": FULL["clip_skip"]}
    del counted["clip_skip"]
    assert found.fields == counted
    assert found.not_understood == ()
    assert found.model_hash == "ababababab"


def test_own_text_in_full() -> None:
    request = Request(
        "a circle", "blue", seed=3, noise="cuda", clip_skip=2, sampler="ddim", eta=0.5
    )
    made = Provenance(model="demo", model_hash="12" * 32, version="1.2.3")
    assert parameters_text(request, made) == (
        "a circle\n"
        "Negative prompt: blue\n"
        "Steps: 25, Sampler: DDIM, Schedule type: Karras, CFG scale: 7.5, Seed: 3, Size: 512x512, "
        "Model hash: 1212121212, Model: demo, Clip skip: 2, Eta DDIM: 0.5, RNG: NV, "
        "Version: sdengine 1.2.3"
    )


@pytest.mark.parametrize(
    ("shown", "fields"),
    [
        ("0.2-0.8", {"guidance_interval": (0.2, 0.8)}),
        ("0-1", {"guidance_interval": (0.0, 1.0)}),
        ("1e-05-0.5", {"guidance_interval": (1e-05, 0.5)}),
        ("0.8-0.2", {}),
        ("0.2", {}),
        ("0.2-0.5-0.8", {}),
        ("-0.2-0.8", {}),
        ("0-nan", {}),
    ],
)
def test_guidance_interval(shown: str, fields: dict[str, Any]) -> None:
    found = parse_parameters(f"a circle\nSteps: 4, CFG interval: {shown}, Seed: 3")
    assert {n: v for n, v in found.fields.items() if n == "guidance_interval"} == fields
    assert found.not_understood == (() if fields else ("CFG interval",))


@pytest.mark.parametrize("emphasis", ["original", "no_norm", "none", "literal"])
@pytest.mark.parametrize("noise", ["cpu", "cuda"])
@pytest.mark.parametrize("negative", ["", "x"])
def test_choices_come_back(emphasis: str, noise: str, negative: str) -> None:
    request = Request("a", negative, emphasis=emphasis, noise=noise)
    found = parse_parameters(parameters_text(request, Provenance(model="m"))).fields
    assert Request(**found) == request


def test_text_of_the_web_ui() -> None:
    found = parse_parameters(
        "a cat\nNegative prompt: dog\nbird\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7, Seed: 3, "
        'Size: 512x640, Model hash: 0123456789, Model: "a, b", Hires upscale: 2, '
        'Lora hashes: "x: 1, y: 2", ENSD: 31337, Clip skip: 2, Version: v1.9'
    )
    assert found.fields == {
        "prompt": "a cat",
        "negative_prompt": "dog\nbird",
        "steps": 20,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "guidance_scale": 7.0,
        "seed": 3,
        "width": 512,
        "height": 640,
        "hires": 2.0,
        "web_ui_clip_skip": 2,
        "noise": "cuda",  # which the web UI leaves out
    }
    assert found.model_hash == "0123456789"
    assert found.not_understood == ("ENSD",)


def test_a_second_pass_comes_back() -> None:
    made = Provenance(model="m")
    usual = Request("a", hires=2, hires_steps=10)
    assert (
        "Denoising strength: 0.7, Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent"
        in parameters_text(usual, made)
    )
    sized = Request("a", hires=(768, 0), hires_upscaler="latent_nearest_exact", hires_strength=0.55)
    text = parameters_text(sized, made)
    assert "Hires resize: 768x0, Hires upscaler: Latent (nearest-exact)" in text
    for request in (usual, sized, Request("a", hires=1.5, hires_upscaler="lanczos")):
        found = parse_parameters(parameters_text(request, made))
        assert Request(**found.fields) == request and not found.not_understood


@pytest.mark.parametrize(
    ("pairs", "names"),
    [
        ("Hires sampler: Euler a", ("euler_a", None)),
        ("Hires sampler: DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("Hires sampler: DPM++ 2M, Hires schedule type: SGM Uniform", ("dpmpp_2m", "sgm_uniform")),
        ("Hires sampler: DPM++ 2M, Hires schedule type: Automatic", ("dpmpp_2m", None)),
        ("Hires schedule type: Beta", (None, "beta")),
    ],
)
def test_a_second_pass_has_the_sampler_that_its_text_names(
    pairs: str, names: tuple[str | None, str | None]
) -> None:
    found = parse_parameters(f"a\nSteps: 4, Sampler: Heun, Hires upscale: 2, {pairs}")
    request = Request(**found.fields)
    assert (request.hires_sampler, request.hires_schedule) == names
    assert not found.not_understood


def test_unknown_samplers_of_a_second_pass_are_named() -> None:
    text = "a\nSteps: 4, Hires upscale: 2, Hires sampler: Best, Hires schedule type: Own"
    found = parse_parameters(text)
    assert found.not_understood == ("Hires schedule type", "Hires sampler")
    alone = parse_parameters("a\nSteps: 4, Seed: 3, Hires sampler: Euler, Hires prompt: b")
    assert alone.not_understood == ("Hires sampler", "Hires prompt")


def test_a_second_pass_of_another_kind_is_named() -> None:
    text = "a\nSteps: 4, Denoising strength: 0.4, Hires upscale: 2, Hires upscaler: 4x-UltraSharp"
    found = parse_parameters(text)
    assert found.fields["hires"] == 2 and found.fields["hires_strength"] == 0.4
    assert found.not_understood == ("Hires upscaler",)
    alone = parse_parameters("a\nSteps: 4, Denoising strength: 0.4, Seed: 3")
    assert "hires_strength" not in alone.fields
    assert alone.not_understood == ("Denoising strength",)
    wrong = parse_parameters("a\nSteps: 4, Hires upscale: 99, Hires steps: 2, Seed: 3")
    assert not wrong.fields.keys() & {"hires", "hires_steps"}
    assert wrong.not_understood == ("Hires upscale", "Hires steps")


@pytest.mark.parametrize(
    ("pairs", "expected", "unknown"),
    [
        ("Sampler: DPM++ 2M Karras", ("dpmpp_2m", "karras"), ()),
        ("Sampler: Euler a", ("euler_a", "normal"), ()),
        ("Sampler: Euler, Schedule type: Uniform", ("euler", "normal"), ()),
        ("Sampler: Euler, Schedule type: DDIM", ("euler", "ddim_uniform"), ()),
        ("Sampler: Euler, Schedule type: SGM Uniform", ("euler", "sgm_uniform"), ()),
        ("Sampler: Euler, Schedule type: KL Optimal", ("euler", "normal"), ("Schedule type",)),
        ("Sampler: Restart, Schedule type: Karras", None, ("Sampler",)),
        ("Schedule type: Karras", None, ()),
    ],
)
def test_sampler_names(
    pairs: str, expected: tuple[str, str] | None, unknown: tuple[str, ...]
) -> None:
    found = parse_parameters(f"a\nSteps: 20, {pairs}")
    names = (found.fields.get("sampler"), found.fields.get("schedule"))
    assert names == (expected or (None, None))
    assert found.not_understood == unknown


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        ("Clip skip: 40", "Clip skip"),
        ("Size: 500x500", "Size"),
        ("Size: 512", "Size"),
        ("Seed: -2", "Seed"),
        (f"Seed: {2**64}", "Seed"),
        ("CFG scale: 1e999", "CFG scale"),
        ("CFG scale: nan", "CFG scale"),
        ("Eta: 2", "Eta"),
        ("RNG: Z", "RNG"),
        ("Emphasis: ?", "Emphasis"),
        ("Variation seed strength: 0.5", "Variation seed strength"),
        ("Variation seed: 3, Variation seed strength: 2", "Variation seed strength"),
        ("Seed resize from: 0x0", "Seed resize from"),
        ("a\x1b[2Jb: 3", "'a\\x1b[2Jb'"),
    ],
)
def test_values_that_none_accepts_are_named(pair: str, name: str) -> None:
    found = parse_parameters(f"a\nSteps: 20, {pair}")
    assert found.not_understood == (name,)
    Request(**found.fields)


LINE = (
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768, Model hash: abcdef1234, "
    "Model: some-model"
)
READ = {
    "negative_prompt": "dog",
    "steps": 20,
    "sampler": "euler_a",
    "schedule": "normal",
    "guidance_scale": 7.0,
    "seed": 5,
    "width": 512,
    "height": 768,
    "noise": "cuda",
}


@pytest.mark.parametrize(
    ("behind", "named"),
    [
        (", Version: v1.6.0", ()),
        (
            ", Version: v1.6.0\nTemplate: a {red|blue} cat, Steps: 3, Seed: 9\n"
            "Negative Template: dog",
            ("Template", "Negative Template"),
        ),
        ("\nTemplate: a {{red|blue}} cat,\nsecond line, Steps: 4", ("Template",)),
        ("\r\nTemplate: x\r\n\r\n", ("Template",)),
        ('\nWildcard prompt: "a\nSteps: 3"', ("Wildcard prompt", "Steps")),
        (', Template: "a {{red|blue}} cat, Steps: 3", Version: v1.7.0', ("Template",)),
        (', Template: "a cat,\nSteps: 3, Seed: 9", Version: v1.7.0', ("Template",)),
        (', Note: "a \\"b\\", Seed: 9"', ("Note",)),
        (", x, Version: 1\nand a line", ("'x'", "the line 'and a line'")),
        (", Steps: 7", ("Steps",)),
        (
            ', Civitai resources: [{"type":"checkpoint","name":"v6, Seed: 9"}, {"weight":0.8}], '
            'Civitai metadata: {"Size":"1x1, Steps: 4"}',
            ("Civitai resources", "Civitai metadata"),
        ),
        (', Broken: [{"a": 1, Seed: 9', ("Broken", "Seed")),
    ],
)
@pytest.mark.parametrize("prompt", ["a red cat", "Steps: 3, to heaven\nSteps: 9\na cat"])
def test_what_tools_write_behind_the_pairs(
    prompt: str, behind: str, named: tuple[str, ...]
) -> None:
    """None of it ends up in a prompt or in a value, and all of it is named."""
    found = parse_parameters(f"{prompt}\nNegative prompt: dog\n{LINE}{behind}")
    assert found.fields == {"prompt": prompt, **READ}
    assert found.not_understood == named


@pytest.mark.parametrize(
    "pairs",
    [
        "Size: 512x768, Seed: 5, Steps: 20, Sampler: Euler a, CFG scale: 7, Model: some-model",
        "Steps: 20\nSampler: Euler a\nCFG scale: 7\nSeed: 5\nSize: 512x768",
        "Steps: 20, Sampler: Euler a,\nCFG scale: 7, Seed: 5, \nSize: 512x768,",
        LINE.replace(", ", ","),
    ],
)
def test_pairs_in_other_orders_and_on_several_lines(pairs: str) -> None:
    found = parse_parameters(f"a cat\r\nNegative prompt: dog\r\n{pairs}")
    assert found.fields == {"prompt": "a cat", **READ}
    assert found.not_understood == ()


def test_a_seed_of_minus_one_is_left_to_the_engine() -> None:
    found = parse_parameters("a\nSteps: 20, Seed: -1")
    assert found.fields == {"prompt": "a", "negative_prompt": "", "steps": 20, "noise": "cuda"}
    assert found.not_understood == ()


@pytest.mark.parametrize(("own", "written"), [(None, None), (1, 2), (2, 3)])
def test_clip_skip_is_written_as_the_web_ui_counts_it(own: int | None, written: int | None) -> None:
    text = parameters_text(Request("a", clip_skip=own), Provenance(usual_clip_skip=2))
    assert parse_parameters(text).fields.get("web_ui_clip_skip") == written


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [
        ("", "", ""),
        ("a: b, c: d", "a: b, c: d", ""),
        ("Negative prompt: x", "", "x"),
        ("a\nNegative prompt:", "a", ""),
        ("Steps: 3 to heaven\nb", "Steps: 3 to heaven\nb", ""),
    ],
)
def test_prompts_alone(text: str, prompt: str, negative: str) -> None:
    found = parse_parameters(text)
    assert found.fields == {"prompt": prompt, "negative_prompt": negative}


@pytest.mark.parametrize("filler", ["a", " ", '"', ":", ",", "a:", 'a:"', 'a:"\\"', "\\", "a,"])
def test_long_lines_end_soon(filler: str) -> None:
    """Lines on which a careless pattern would take hours; the suite's time limit would end it."""
    for length in (60_000, 1_000_000):
        parse_parameters(f"Steps: 1, {filler}\n" * (length // (len(filler) + 11)))
        line = "Steps: 1," + filler * (length // len(filler))
        fields = parse_parameters(line).fields
        # The longer ones are no pairs but a prompt.
        assert fields.get("steps") == 1 or fields["prompt"] == line.strip()
