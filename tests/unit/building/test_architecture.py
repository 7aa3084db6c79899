"""What a manifest says of a checkpoint's scheduler: used, refused, or named as not taken over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_folders import edit_json
from support.tiny_checkpoints import make_tiny

from sdengine.building.architecture import choose_defaults, describe
from sdengine.bundle.architecture import Architecture
from sdengine.checkpoints import load_checkpoint
from sdengine.cli.checkpoint_options import scheduler_changes
from sdengine.errors import CheckpointError, ConfigError
from sdengine.samplers import NoiseSchedule

SCHEDULER = "scheduler/scheduler_config.json"
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# As published with Stable Diffusion 1.5, XL and XL Turbo, and as solvers write them.
PUBLISHED: tuple[dict[str, Any], ...] = (
    {
        "_class_name": "PNDMScheduler", **LATENT, "clip_sample": False, "skip_prk_steps": True,
        "num_train_timesteps": 1000, "set_alpha_to_one": False, "steps_offset": 1,
        "trained_betas": None,
    },
    {
        "_class_name": "EulerDiscreteScheduler", **LATENT, "clip_sample": False,
        "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0,
        "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "timestep_spacing": "leading", "use_karras_sigmas": False,
    },
    {
        "_class_name": "EulerAncestralDiscreteScheduler", **LATENT, "clip_sample": False,
        "interpolation_type": "linear", "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "timestep_spacing": "trailing", "trained_betas": None,
    },
    {
        "_class_name": "DEISMultistepScheduler", **LATENT, "algorithm_type": "deis",
        "clip_sample": False, "dynamic_thresholding_ratio": 0.995, "lower_order_final": True,
        "sample_max_value": 1.0, "solver_order": 2, "solver_type": "logrho",
        "thresholding": False, "trained_betas": None,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("tiny", tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


def described(folder: Path, config: dict[str, Any], **changes: Any) -> Architecture:
    (folder / SCHEDULER).write_text(json.dumps(config))
    opened = load_checkpoint(folder, scheduler=changes)
    architecture = describe(opened)
    assert choose_defaults(opened, [(128, 128)]).width == 128
    return architecture


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda config: str(config["_class_name"]))
def test_published_schedulers_are_taken_over_whole(config: dict[str, Any], copy: Path) -> None:
    architecture = described(copy, config)
    assert architecture.not_taken_over == []
    assert config.items() <= architecture.scheduler.items()


@pytest.mark.parametrize(
    "kind", ["FlowMatchEulerDiscreteScheduler", "IPNDMScheduler", None, ["DDIMScheduler"]]
)
def test_another_process_is_refused_by_its_class(kind: Any, copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"_class_name: .*EDMEulerScheduler"):
        described(copy, {"_class_name": kind, "num_train_timesteps": 1000, "shift": 3.0})
    if kind is not None:
        with pytest.raises(ConfigError, match="_class_name"):
            NoiseSchedule.from_config({"_class_name": kind})


def test_the_index_names_the_class_where_the_file_does_not(copy: Path) -> None:
    assert described(copy, LATENT, clip_sample=False).scheduler["_class_name"] == "DDIMScheduler"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("DDIMScheduler", {"clip_sample": True}),
        ("DDIMScheduler", {}),  # whose default clips
        ("DDPMScheduler", {}),
        ("LCMScheduler", {"clip_sample": True}),
        ("DPMSolverMultistepScheduler", {"thresholding": True}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}),
    ],
)
def test_what_no_program_can_do_is_refused_or_overridden(
    kind: str, change: dict[str, Any], copy: Path
) -> None:
    config = {"_class_name": kind, **LATENT, **change}
    key = next(iter(change), "clip_sample")
    with pytest.raises(CheckpointError, match=rf"scheduler\.{key}: True.*{key}=false"):
        described(copy, config)
    assert described(copy, config, **{key: False}).scheduler[key] is False
    # A class without the key does not clip.
    assert described(copy, {**config, "_class_name": "PNDMScheduler", "skip_prk_steps": True})


def test_tuning_of_the_files_own_sampler_is_named(copy: Path) -> None:
    config = {
        "_class_name": "DPMSolverMultistepScheduler", **LATENT, "solver_order": 3,
        "algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "use_lu_lambdas": True,
        "final_sigmas_type": "sigma_min", "use_karras_sigmas": True,
    }  # fmt: skip
    lines = described(copy, config).not_taken_over
    assert {line.split()[0] for line in lines} == {f"scheduler.{key}" for key in list(config)[4:]}
    assert all("DPMSolverMultistepScheduler" in line for line in lines)
    euler = {"_class_name": "EulerDiscreteScheduler", **LATENT, "interpolation_type": "log_linear"}
    assert len(described(copy, euler).not_taken_over) == 1


def test_a_key_that_nobody_knows_is_refused(copy: Path) -> None:
    config = {**PUBLISHED[0], "of_another_release": 3}
    with pytest.raises(CheckpointError, match=r"scheduler\.of_another_release: 3"):
        described(copy, config)
    assert described(copy, config, of_another_release=None)
    edit_json(copy / "model_index.json", prior=["diffusers", "PriorTransformer"])
    with pytest.raises(CheckpointError, match=r"model_index\.json: prior"):
        load_checkpoint(copy)


def test_the_process_is_the_classes_where_the_file_is_silent(copy: Path) -> None:
    spacings = {
        "PNDMScheduler": "leading",
        "EulerDiscreteScheduler": "linspace",
        "DPMSolverMultistepScheduler": "linspace",
    }
    for kind, spacing in spacings.items():
        read = NoiseSchedule.from_config(described(copy, {"_class_name": kind}).scheduler)
        assert read.timestep_spacing == spacing
    edm = described(copy, {"_class_name": "EDMEulerScheduler", "sigma_max": 120.0})
    schedule = NoiseSchedule.from_config(edm.scheduler)
    assert schedule.sigmas[-1] == pytest.approx(120.0)
    assert (schedule.own_schedule, schedule.sigma_data) == ("karras", 0.5)


def test_options_of_the_command_line() -> None:
    read = scheduler_changes(["clip_sample=false", "trained_betas=null", "timestep_spacing=a=b"])
    assert read == {"clip_sample": False, "trained_betas": None, "timestep_spacing": "a=b"}
    for wrong in ("clip_sample", "=false"):
        with pytest.raises(ConfigError, match="--scheduler"):
            scheduler_changes([wrong])
