"""Sections of the report: what was measured against what, by which command, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdengine.benchmarks import accuracy_sections as sections
from sdengine.benchmarks import accuracy_tables as accuracy
from sdengine.benchmarks import native_sections
from sdengine.benchmarks import native_tables as native
from sdengine.benchmarks.batch_tables import batches
from sdengine.benchmarks.markdown import folded
from sdengine.benchmarks.measures import EQUAL_PSNR_DB
from sdengine.benchmarks.pipeline_parity import as_markdown as pictures_table
from sdengine.benchmarks.serving_sections import serving
from sdengine.benchmarks.step_counts import as_markdown as step_counts_table
from sdengine.benchmarks.step_counts import failures as step_count_failures
from sdengine.benchmarks.suite.growth.tables import as_markdown as growth_table
from sdengine.benchmarks.suite.tables import as_markdown, groups
from sdengine.benchmarks.training_sections import training

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """All records of a folder of results, oldest first; `sheets` names its pictures."""

    prompt_following: Sequence[Record]
    pictures: Record
    samplers: Record
    step_counts: Record
    emphasis: Record
    quantisation: Record
    guidance_interval: Record
    adapter_formats: Record
    picture_tasks: Record
    roofline: Record
    demo_variants: Mapping[str, Record]
    vae_bands: Record
    swap: Record
    training: Record
    serving: Record
    batches: Record
    comparisons: Sequence[Record]
    growths: Sequence[Record]
    networks: Sequence[Record]
    operations: Sequence[Record]
    hard_values: Record
    controls: Sequence[Record]
    kernels: Record
    sheets: Sequence[str]


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Args:
        title: its heading.
        measured, against: for the table of contents.
        command: what makes its records.
        body: returns its text, none where nothing was measured yet.
    """

    title: str
    measured: str
    against: str
    command: str
    body: Callable[[Records], str]


def prompt_following(records: Records) -> str:
    """Return how well the demo model's pictures show what the prompt says, and the sheets."""
    every = records.prompt_following
    first = every[0]
    sheets = [name for name in records.sheets if name.startswith("prompt-following")]
    shown = [f"![{_sheet(name)}]({name})" for name in sheets]
    more = "\n\n".join(f"{_sheet(n)}\n\n{s}" for n, s in zip(sheets[1:], shown[1:], strict=True))
    return "\n\n".join(
        [
            f"{first['prompts_per_set']} prompts of one object and as many of two at "
            f"{first['size']} pixels, of compositions that training never saw "
            f"({', '.join(_per_set(r) for r in every[1:])}); one fixed guidance scale, "
            f"{first['guidance_scale']:g}, chosen on other prompts; {first['sampler']}, "
            f"{first['schedule']}, {first['steps']} steps. Pictures are scored by measurement: "
            "background from the corners, objects as connected regions, their colour, shape by "
            'overlap with templates, place. "all" is everything but the size. "VAE, real scenes" '
            "is the autoencoder alone on real scenes, the upper limit of the other rows. Most of "
            "the training was at the smallest of these sizes.",
            accuracy.prompt_following(every),
            f"The first prompts of each set, {_sheet(sheets[0])}; red frames mark the wrong.",
            shown[0],
            folded("the other sheets", more),
            "`--choose-guidance` shows how the scale was chosen; `--size` and `--precision` give "
            "the other rows.",
        ]
    )


def pictures(records: Records) -> str:
    """Return how far our pictures are from those of diffusers' pipeline."""
    record = records.pictures
    count = len(record["prompts"])
    required = ", ".join(f"{db:g} dB in {name}" for name, db in record["required_db"].items())
    return "\n\n".join(
        [
            f"{count} pictures a sampler from the demo checkpoint with equal seeds, "
            f"{record['steps']} steps, {record['side']} pixels, our run against the "
            f"`StableDiffusionPipeline` of diffusers {record['versions']['diffusers']} in fp32. "
            f"Equal pictures count as {EQUAL_PSNR_DB:g} dB. Accepted: {required}.",
            pictures_table(record["psnr_db"]),
        ]
    )


def samplers(records: Records) -> str:
    """Return the errors of whole trajectories."""
    record = records.samplers
    *steps, last = record["steps"]
    worst = accuracy.worst_sampler_errors(record["relative_error"])
    shown = " and ".join(f"{error:.0e} against {name}" for name, error in worst.items())
    left_out = [f"Left out, {what}: {reason}." for what, reason in record["differs"].items()]
    return "\n\n".join(
        [
            "The whole trajectory in float64 against an independent implementation, with the same "
            "latents, noises and a nonlinear stand-in for the network; the largest error over "
            f"{', '.join(map(str, steps))} and {last} steps, noise and v prediction, relative to "
            f"the largest value. The worst of all are {shown}; diffusers keeps its noise levels in "
            "fp32.",
            folded("sampler x schedule", accuracy.samplers(record["relative_error"])),
            *left_out,
        ]
    )


def step_counts(records: Records) -> str:
    """Return how far low precision gets from fp32 as steps grow many."""
    record = records.step_counts
    missed = step_count_failures(record["psnr_db"])
    return "\n\n".join(
        [
            f"One picture of the demo model a combination, {record['side']} pixels, guidance scale "
            f"{record['guidance_scale']:g}: every multistep sampler under every schedule, against "
            "the same in fp32. Each cell is the schedule with the lowest PSNR. Accepted: "
            f"{record['required_db']:g} dB. One picture finds what is wrong everywhere, not what "
            "other prompts and seeds would show. PLMS of about ten steps is far from a converged "
            "picture in fp32 too; it is a method for more of them.",
            step_counts_table(record["psnr_db"]),
            f"Missed: {'; '.join(missed) or 'nowhere'}.",
        ]
    )


def comparisons(records: Records) -> str:
    """Return speed and memory of whole requests beside eager torch and other systems, on CPUs."""
    measured = groups([record for record in records.comparisons if "gpu" not in record])
    shown = [as_markdown(group) for group in reversed(measured)]
    return "\n\n".join(
        [
            "Every side is a process of its own and is asked for the same picture, from the same "
            "noise on the same noise levels. Outputs are compared first; then requests of ours and "
            "of a peer alternate. A cell is the median and, in brackets, the 10th to the 90th "
            "percentile; times of networks are those of one call, the rest is of a whole picture, "
            "and peak memory that of the process. Full-size networks have seeded synthetic "
            "weights: their speed is real, their pictures are noise. The same as a page with "
            "pictures of it all: [bench.html](bench.html).",
            *shown,
        ]
    )


def growth(records: Records) -> str:
    """Return how cost grows along every axis."""
    by_arch: dict[tuple[str, str], list[Record]] = {}
    for record in records.growths:
        by_arch.setdefault((record["arch"], record["precision"]), []).append(record)
    shown = [growth_table(group) for group in by_arch.values()]
    if not shown:
        return ""
    return "\n\n".join(
        [
            "Each point is a process of its own; the processes of an axis take turns. Exponents "
            "are of a power law fitted to the medians, in brackets with their 95 % interval: 1 "
            'grows as the axis does, 0 not at all. "Each one more" is the share of the cheapest '
            "point that one more costs, on axes that are counted. Outside is all that no network "
            "computes.",
            *shown,
        ]
    )


def kernels(records: Records) -> str:
    """Return what the compiled Triton kernels need, and where their table is."""
    return "\n\n".join(
        [
            f"{accuracy.kernel_resources(records.kernels)} Triton multiplies without tensor cores "
            "for 7.5, hence no attention there. Bytes, operations and rooflines of each shape: "
            "[kernel-resources.md](kernel-resources.md).",
            "In the interpreter the kernels compute what their references do, within the "
            "tolerances of `tests/tolerances.py` and at 16 bits with at most twice torch's own "
            "error. As plugins they pass TensorRT's own validators, and launched with what the "
            "plugins pass they compute the same in the interpreter.",
        ]
    )


def gpu(records: Records) -> str:
    """Return the comparisons on GPUs, or what is known without any."""
    measured = groups([record for record in records.comparisons if "gpu" in record])
    shown = [as_markdown(group) for group in measured]
    return "\n\n".join(shown or _WITHOUT_A_GPU)


_WITHOUT_A_GPU = (
    "**Nothing is measured on a GPU yet**, and no test has run on one. `make gpu-check` does both "
    "on a machine with an NVIDIA GPU and nvcc; comparisons that it leaves in `bench.jsonl`, put "
    "into this folder, appear here. Where there is no package index, or little time, "
    "`python benchmarks/gpu_smoke.py` builds, tests and times the most important in minutes, and "
    "leaves all that it found in one file.",
    "What is known without a GPU: the CUDA kernels of the extension compile without warnings, and "
    "its CUDA code (streams, graphs, memory, step and pixel kernels) runs in the C++ tests on a "
    "strict host implementation of the CUDA runtime that enforces the documented rules, also under "
    "the address and undefined behaviour sanitizers: mixed requests over several sizes allocate "
    "nothing after the first of each, keep their addresses and leave nothing behind. Whole "
    "requests of the TensorRT backend run on the native run time's CPU device, which captures and "
    "replays as a GPU does, with a stand-in for TensorRT that computes with onnxruntime, refuses "
    "shapes outside the profile, tensors without an address and a first run within a capture, and "
    "writes all over its scratch. There every request, whichever path it takes, gives the pictures "
    "of the path through the host; a step is one launch, Python enqueues the U-Net twice however "
    "many steps and requests follow, one block is allocated. How fast that is on a GPU, and "
    "whether real engines can be captured, is not known.",
)
SECTIONS = (
    Section(
        "Prompt following", "pictures of the demo model", "what the prompt says",
        "python benchmarks/prompt_following.py", prompt_following,
    ),
    Section(
        "The same picture as diffusers", "pictures of the demo checkpoint", "diffusers in fp32",
        "python benchmarks/pipeline_parity.py", pictures,
    ),
    Section(
        "Samplers", "trajectories in float64", "diffusers, k-diffusion",
        "python benchmarks/sampler_parity.py", samplers,
    ),
    Section(
        "Many steps", "multistep samplers, 5 to 150 steps", "the same in fp32",
        "python benchmarks/step_counts.py", step_counts,
    ),
    Section(
        "Emphasis", "a colour's share of the picture", "other weights of that colour",
        "python benchmarks/emphasis.py", lambda records: sections.emphasis(records.emphasis),
    ),
    Section(
        "Engines in eight bits", "U-Nets in FP8 and INT8, and their pictures", "the same in fp32",
        "python benchmarks/quantisation.py",
        lambda records: sections.quantisation(records.quantisation),
    ),
    Section(
        "Guidance interval", "time and pictures of the demo model", "guidance at every step",
        "python benchmarks/guidance_interval.py",
        lambda records: sections.guidance_interval(records.guidance_interval),
    ),
    Section(
        "From pictures", "pictures changed, enlarged, kept by the demo model", "what was asked for",
        "python benchmarks/picture_tasks.py",
        lambda records: sections.picture_tasks(records.picture_tasks),
    ),
    Section(
        "Variants of the demo model", "inpainting, depth, edges, and a tiny decoder",
        "what was asked for",
        "python benchmarks/demo_variants.py",
        lambda records: sections.demo_variants(records.demo_variants),
    ),
    Section(
        "Training", "what the demo model was taught; resumed runs; steps", "diffusers' scripts",
        "python benchmarks/training.py PART",
        lambda records: training(records.training, records.demo_variants["edges"]),
    ),
    Section(
        "Serving", "the server under load; HTTP over the engine", "the engine in a process",
        "taskset -c 0 python benchmarks/serving_load.py --minutes 10",
        lambda records: serving(records.serving),
    ),
    Section(
        "The VAE in bands", "memory and processor time of SD 1.5's VAE", "whole maps",
        "python benchmarks/vae_bands.py --native NATIVE",
        lambda records: sections.vae_bands(records.vae_bands),
    ),
    Section(
        "Formats of adapters", "pictures with files of every format and family",
        "diffusers, PEFT, LyCORIS, formulas", "python benchmarks/adapter_formats.py",
        lambda records: sections.adapter_formats(records.adapter_formats),
    ),
    Section(
        "Swaps of weights", "time and memory of a LoRA on loaded networks", "a fresh load",
        "python benchmarks/swap.py --bundles sd15=BUNDLE --models sd15=MODEL",
        lambda records: native.swaps(records.swap),
    ),
    Section(
        "Batches", "rows of a file in one process and on Ray, killed and resumed", "each other",
        "python benchmarks/batches.py", lambda records: batches(records.batches),
    ),
    Section(
        "Steps with a ControlNet", "a step without, with, and with one that is off",
        "diffusers, OpenVINO",
        "python benchmarks/controls.py --folder FOLDER --record controls.jsonl",
        lambda records: native_sections.controls(records.controls),
    ),
    Section(
        "Networks on the native target", "one call of each network", "OpenVINO, torch",
        "python benchmarks/native_networks.py --native NATIVE --openvino OPENVINO --torch TORCH",
        lambda records: native_sections.networks(records.networks),
    ),
    Section(
        "Single operations", "operations of the native target", "oneDNN, OpenVINO",
        "python benchmarks/native_ops.py",
        lambda records: native_sections.operations(records.operations),
    ),
    Section(
        "Hard values", "errors of the native target's operations", "torch in bf16",
        "python benchmarks/native_numerics.py",
        lambda records: native_sections.hard_values(records.hard_values),
    ),
    Section(
        "Speed and memory", "requests, stages, start, memory", "eager torch and every peer",
        "sdengine bench --arch sd15 --against all", comparisons,
    ),
    Section(
        "Growth of cost", "time and memory by size, batch, steps, prompt, adapters", "a power law",
        "sdengine bench growth --json growth.jsonl", growth,
    ),
    Section(
        "Triton kernels", "registers, shared memory, occupancy", "the GPUs' limits",
        "python benchmarks/kernel_resources.py", kernels,
    ),
    Section(
        "Roofline of a GPU", "a U-Net's step by arithmetic", "nothing: it is computed",
        "python benchmarks/roofline.py", lambda records: sections.roofline(records.roofline),
    ),
    Section("On a GPU", "all of the above that a GPU runs", "eager torch", "make gpu-check", gpu),
)  # fmt: skip


def _sheet(name: str) -> str:
    size, precision = name.removesuffix(".png").split("-")[2:]
    return f"{size} pixels in {precision}"


def _per_set(record: Record) -> str:
    return f"{record['prompts_per_set']} a set at {record['size']} in {record['precision']}"
