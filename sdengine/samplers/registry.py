"""Samplers and schedules by name, with what people need to know to choose one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sdengine.samplers import (
    consistency,
    ddim,
    deis,
    dpmpp,
    dpmpp_sde,
    euler,
    heun,
    lms,
    pndm,
    unipc,
)
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span
from sdengine.samplers.program import SamplerProgram

Build = Callable[[str, Span, NoiseSchedule, SamplerOptions], SamplerProgram]

_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
_ANCESTRAL = ("eta", "s_noise")


@dataclass(frozen=True)
class SamplerInfo:
    """Describe a sampler to people and to `build_program`.

    Args:
        name, label: how requests and people call it.
        description: a clause.
        build: makes the program.
        evaluations: of the network in each step.
        options: fields of SamplerOptions that it has.
        default_schedule: what it takes when a request names no schedule.
        aliases: other names.
    """

    name: str
    label: str
    description: str
    build: Build
    evaluations: int = 1
    options: tuple[str, ...] = ()
    default_schedule: str = "normal"
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScheduleInfo:
    """Describe a schedule to people."""

    name: str
    label: str
    description: str
    aliases: tuple[str, ...] = ()


_SAMPLERS = (
    SamplerInfo(
        "ddim", "DDIM", "first order; eta adds noise", ddim.ddim,
        options=("eta",), aliases=("DDIMScheduler",),
    ),
    SamplerInfo(
        "ddpm", "DDPM", "the original ancestral sampler, for many steps", ddim.ddpm,
        aliases=("DDPMScheduler",),
    ),
    SamplerInfo(
        "pndm", "PLMS", "fourth order multistep; one evaluation more than steps", pndm.pndm,
        aliases=("pndm", "PNDMScheduler"),
    ),
    SamplerInfo(
        "euler", "Euler", "first order", euler.euler,
        options=_CHURN, aliases=("k_euler", "EulerDiscreteScheduler"),
    ),
    SamplerInfo(
        "euler_a", "Euler a", "ancestral: fresh noise in every step, does not converge",
        euler.euler_ancestral, options=_ANCESTRAL,
        aliases=("euler ancestral", "k_euler_a", "EulerAncestralDiscreteScheduler"),
    ),
    SamplerInfo(
        "heun", "Heun", "second order, single step", heun.heun, 2, _CHURN,
        aliases=("k_heun", "HeunDiscreteScheduler"),
    ),
    SamplerInfo(
        "dpm2", "DPM2", "second order, single step", heun.dpm2, 2, _CHURN, "karras",
        aliases=("k_dpm_2", "KDPM2DiscreteScheduler"),
    ),
    SamplerInfo(
        "dpm2_a", "DPM2 a", "ancestral, second order", heun.dpm2_ancestral, 2, _ANCESTRAL,
        "karras", aliases=("k_dpm_2_a", "KDPM2AncestralDiscreteScheduler"),
    ),
    SamplerInfo(
        "lms", "LMS", "fourth order multistep", lms.lms,
        aliases=("k_lms", "LMSDiscreteScheduler"),
    ),
    SamplerInfo(
        "dpmpp_2s_a", "DPM++ 2S a", "ancestral, second order, single step",
        dpmpp.dpmpp_2s_ancestral, 2, _ANCESTRAL, "karras", ("k_dpmpp_2s_a",),
    ),
    SamplerInfo(
        "dpmpp_2m", "DPM++ 2M", "second order multistep; good at 15 to 30 steps", dpmpp.dpmpp_2m,
        default_schedule="karras",
        aliases=("dpmsolver++", "k_dpmpp_2m", "DPMSolverMultistepScheduler"),
    ),
    SamplerInfo(
        "dpmpp_sde", "DPM++ SDE", "stochastic, second order, single step", dpmpp_sde.dpmpp_sde,
        2, _ANCESTRAL, "karras", ("k_dpmpp_sde", "DPMSolverSDEScheduler"),
    ),
    SamplerInfo(
        "dpmpp_2m_sde", "DPM++ 2M SDE", "stochastic, second order multistep",
        dpmpp_sde.dpmpp_2m_sde, 1, _ANCESTRAL, "exponential", ("k_dpmpp_2m_sde",),
    ),
    SamplerInfo(
        "dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun", "the same in Heun form",
        dpmpp_sde.dpmpp_2m_sde_heun, 1, _ANCESTRAL, "exponential",
    ),
    SamplerInfo(
        "dpmpp_3m_sde", "DPM++ 3M SDE", "stochastic, third order multistep",
        dpmpp_sde.dpmpp_3m_sde, 1, _ANCESTRAL, "exponential", ("k_dpmpp_3m_sde",),
    ),
    SamplerInfo(
        "deis", "DEIS", "second order multistep in the noise", deis.deis,
        aliases=("DEISMultistepScheduler",),
    ),
    SamplerInfo(
        "unipc", "UniPC", "second order predictor and corrector; good at 5 to 15 steps",
        unipc.unipc, aliases=("uni_pc", "UniPCMultistepScheduler"),
    ),
    SamplerInfo("unipc_3", "UniPC 3", "the same of third order", unipc.unipc_3),
    SamplerInfo(
        "lcm", "LCM", "for latent consistency models, 1 to 8 steps", consistency.lcm,
        aliases=("LCMScheduler",),
    ),
    SamplerInfo(
        "tcd", "TCD", "for trajectory consistency models; eta, 0.3 if not given, adds noise",
        consistency.tcd, options=("eta",), aliases=("TCDScheduler",),
    ),
)  # fmt: skip

_SCHEDULES = (
    ScheduleInfo("normal", "Normal", "evenly spaced timesteps, as the checkpoint asks"),
    ScheduleInfo("simple", "Simple", "evenly spaced levels of the training schedule"),
    ScheduleInfo("karras", "Karras", "noise levels closer together towards the clean end"),
    ScheduleInfo("exponential", "Exponential", "even in the logarithm of the noise level"),
    ScheduleInfo("polyexponential", "Polyexponential", "denser towards the clean end"),
    ScheduleInfo("sgm_uniform", "SGM Uniform", "evenly spaced timesteps without the cleanest"),
    ScheduleInfo("ddim_uniform", "DDIM Uniform", "timesteps 1, 1 + s, 1 + 2s, ..."),
    ScheduleInfo("beta", "Beta", "dense at both ends"),
    ScheduleInfo(
        "align_your_steps", "Align Your Steps", "optimised for SD 1, best at 10 steps", ("ays",)
    ),
    ScheduleInfo(
        "align_your_steps_sdxl",
        "Align Your Steps SDXL",
        "optimised for SDXL, best at 10 steps",
        ("ays_sdxl",),
    ),
)

SAMPLERS: Mapping[str, SamplerInfo] = MappingProxyType({info.name: info for info in _SAMPLERS})
SCHEDULES: Mapping[str, ScheduleInfo] = MappingProxyType({info.name: info for info in _SCHEDULES})

_DATA_DEPENDENT = (
    "its step sizes depend on the latents, so it is no fixed program that can be made ahead"
)
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "dpm_adaptive": f"{_DATA_DEPENDENT}. Take dpmpp_2m",
        "dpm_fast": "its steps are of three orders by turns, which dpmpp_2m has made obsolete",
        "dynamic_thresholding": (
            "it clips by the latents' own quantiles, which no linear program can. Take "
            "guidance_rescale against too much contrast"
        ),
    }
)
