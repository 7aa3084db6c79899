"""Timings as a mapping of stages, with the names that its JSON has always had."""

from __future__ import annotations

from sdengine.images.timings import StageTime, Timings

FIRST_KEYS = [
    *("load_ms", "text_encoder_ms", "unet_ms", "vae_decoder_ms", "other_ms", "total_ms"),
    *("text_encoder_calls", "unet_calls", "vae_decoder_calls"),
]


def test_stages_and_their_names() -> None:
    stages = {"unet": StageTime(4.0, 8), "vae_decoder": StageTime(2.0, 1)}
    timings = Timings(stages, 7.5)
    assert (timings.unet_ms, timings.unet_calls) == (4.0, 8)
    assert (timings.load_ms, timings.text_encoder_ms, timings.text_encoder_calls) == (0, 0, 0)
    assert timings.other_ms == 1.5
    assert sum(stage.ms for stage in timings.stages.values()) + timings.other_ms == 7.5


def test_json_has_the_keys_of_the_first_release() -> None:
    found = Timings({"unet": StageTime(1.23456, 2)}, 2.0).to_dict()
    assert set(FIRST_KEYS) <= found.keys()
    assert (found["unet_ms"], found["unet_calls"], found["other_ms"]) == (1.235, 2, 0.765)


def test_a_new_stage_needs_no_new_field() -> None:
    timings = Timings({"vae_encoder": StageTime(3.0, 1)}, 4.0)
    found = timings.to_dict()
    assert (found["vae_encoder_ms"], found["vae_encoder_calls"], timings.other_ms) == (3.0, 1, 1.0)
