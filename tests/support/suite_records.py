"""Records of the suite as it writes them: of all kinds and states, and hostile ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Json = dict[str, Any]

PROCESSOR = "Intel(R) Xeon(R) Platinum 8488C with a very long name, 4th generation, @ 2.40GHz"
MACHINE: Json = {
    "processor": PROCESSOR,
    "cores": 8,
    "memory_bytes": 66_000_000_000,
    "system": "Linux 6.1.0",
    "isa": "avx512_amx",
    "clock_mhz": {"now": 3100, "max": 3800},
    "governor": None,
    "affinity": [0, 1, 2, 3, 6],
    "load_average": [0.31, 0.4, 0.2],
}
VERSIONS: Json = {
    "sdengine": "0.1.0",
    "commit": "96218dd0aa",
    "numpy": "2.3.1",
    "torch": "2.9.0",
    "python": "3.11.7",
    "openvino": "2026.1.0",
    "triton": None,
}
ROOFLINE: Json = {
    "flops_per_second": {"fp32": 4.1e11, "bf16": 2.9e12, "int16": 2.88e12, "int8": 5.6e12},
    "bytes_per_second": 8.4e10,
    "threads": 8,
    "unet_step_flops": 1.61e12,
    "unet_step_bytes": 3.4e9,
}
QUIET: Json = {
    "others_percent": 0.5,
    "spread_percent": 2.0,
    "drift_percent": 1.0,
    "is_noisy": False,
    "why": [],
}
NOISY: Json = {
    "others_percent": 34.0,
    "spread_percent": 18.0,
    "drift_percent": 7.0,
    "is_noisy": True,
    "why": ["other programs took 34 % of the processors", "requests differ by 18 %"],
}
# Milliseconds of a step at 512 pixels and 8 threads; resident gigabytes; PSNR; numbers' peak.
SYSTEMS: Mapping[str, tuple[float, float, float, str]] = {
    "native bf16": (1180.0, 2.6, 41.2, "bf16"),
    "native int8": (905.0, 1.9, 33.8, "int8"),
    "eager fp32": (5210.0, 5.9, 100.0, "fp32"),
    "compile bf16": (2120.0, 4.4, 40.7, "bf16"),
    "diffusers bf16": (2460.0, 4.6, 40.9, "bf16"),
    "onnxruntime fp32": (4730.0, 8.1, 96.3, "fp32"),
    "openvino bf16": (1390.0, 3.3, 39.9, "bf16"),
    "stable-diffusion.cpp q8_0": (6900.0, 2.2, 31.5, "int8"),
}
OURS = ("native bf16", "native int8")
NOT_RUN: Json = {
    "state": "not run",
    "why": "it is not installed",
    "install": "pip install openvino-genai openvino-tokenizers diffusers transformers",
}
FAILED: Json = {"state": "failed", "why": "RuntimeError: the pictures differ", "install": ""}
OUT_OF_MEMORY: Json = {"state": "out of memory", "why": "it was ended with 61 GB", "install": ""}
# Ends whatever it may stand in, and calls what must not be called.
EVIL = (
    "</title></style></script>\"'><script>alert(1)</script><img src=x onerror=alert(2)>"
    "$x^2$\x00\u202e\ud800"
)
_SPREAD = (0.991, 1.0, 1.012, 0.997, 1.004)


def spread(median: float, n: int = 5) -> Json:
    """Return a spread whose values lie within 1 %."""
    values = [median * _SPREAD[index % len(_SPREAD)] for index in range(n)]
    low, high = np.percentile(values, [10, 90])
    return {
        "median": float(np.median(values)), "p10": float(low), "p90": float(high), "n": n,
        "values": values,
    }  # fmt: skip


def side(label: str, setting: Mapping[str, Any], runs: int, picture: str | None = None) -> Json:
    """Return a measured side."""
    step, gigabytes, psnr, dtype = SYSTEMS[label]
    scale = (setting["resolution"] / 512) ** 2.15 * setting["batch_size"] ** 0.93
    step *= scale * (8 / (setting["threads"] or 8)) ** 0.88
    scaled = 2 if label.startswith(("stable", "onnx")) else None
    stages = {
        "text_encoder": spread(step / 25, runs),
        "unet_step": spread(step, runs * (scaled or setting["steps"])),
        "vae_decoder": spread(step * 2.4, runs),
        "outside": spread(step / 90, runs),
        "end_to_end": spread(step * (setting["steps"] + 2.5) / setting["batch_size"], runs),
    }
    if label.startswith("stable"):
        del stages["text_encoder"], stages["outside"]
    gflops = 1.61e12 * scale / step / 1e6
    is_device = setting["device"] == "cuda"
    return {
        "state": "measured",
        "why": "",
        "install": "",
        "steps": scaled or setting["steps"],
        "scaled_from_steps": scaled,
        "start_seconds": {
            "import": 0.2 if label in OURS else 3.1,
            "load": gigabytes * 0.7,
            **({"pack": 2.2} if label not in ("eager fp32", "diffusers bf16") else {}),
            "first_request": step * 25 / 1e3,
        },
        "memory": {
            "peak_bytes": int(gigabytes * 1e9 * scale**0.3),
            "cgroup_peak_bytes": None if setting["batch_size"] > 1 else int(gigabytes * 1.1e9),
            **({"device_bytes": int(gigabytes * 2e9), "pool_bytes": 10**9} if is_device else {}),
        },
        "errors": {
            "text_encoder": 0.0 if psnr == 100 else 10 ** (-psnr / 14),
            "unet": 0.0 if psnr == 100 else 10 ** (-psnr / 17),
            "vae_decoder": 0.0 if psnr == 100 else 10 ** (-psnr / 19),
            "latents": 0.0 if psnr == 100 else 10 ** (-psnr / 20),
            "image_psnr_db": psnr,
        },
        "stages_ms": stages,
        "pictures_per_minute": 6e4 / stages["end_to_end"]["median"],
        "joules_per_picture": None if label.startswith("stable") else step * 3.9,
        "unet_gflops": gflops,
        "unet_gflops_per_core": gflops / 8,
        "percent_of_peak": {
            "dtype": dtype,
            "percent": 100 * gflops * 1e9 / ROOFLINE["flops_per_second"][dtype],
        },
        "picture": picture,
    }  # fmt: skip


def _ratio(peer: Json, ours: Json, runs: int) -> Json:
    ratio = peer["median"] / ours["median"]
    ends = (None, None) if runs < 3 else (0.985 * ratio, 1.02 * ratio)
    return {"ratio": ratio, "low": ends[0], "high": ends[1], "n": runs}


def setting(**changes: Any) -> Json:
    """Return a setting's fields."""
    return {
        "arch": "sd15", "checkpoint": None, "task": "text", "resolution": 512, "batch_size": 1,
        "steps": 20, "guidance_scale": 5.0, "threads": 8, "device": "cpu", **changes,
    }  # fmt: skip


def comparison(
    peer: str | None = "eager fp32",
    *,
    runs: int = 5,
    ours: Sequence[str] = OURS,
    peer_side: Json | None = None,
    pictures: bool = False,
    changes: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Json:
    """Return a comparison.

    Args:
        peer: a label, or None for ours alone.
        runs: of each side.
        ours: labels.
        peer_side: in place of a measured one.
        pictures: sides name the files that `write_pictures` writes.
        changes: of the setting.
        fields: of the record, in place of what it would have.
    """
    asked = setting(**(changes or {}))
    labels = [*ours, *([peer] if peer else [])]
    sides = {
        label: peer_side
        if label == peer and peer_side
        else side(label, asked, runs, picture_name(label) if pictures else None)
        for label in labels
    }
    ratios = {}
    if peer and not peer_side:
        ratios = {
            label: {
                stage: _ratio(sides[peer]["stages_ms"][stage], found, runs)
                for stage, found in sides[label]["stages_ms"].items()
                if stage in sides[peer]["stages_ms"]
            }
            for label in ours
        }
    size = f"{asked['resolution']}x{asked['resolution']}"
    batch = f", batch {asked['batch_size']}" if asked["batch_size"] > 1 else ""
    return {
        "schema": 3,
        "time": "2026-11-30T21:04:10+00:00",
        "kind": "comparison",
        "command": f"sdengine bench --arch sd15 --resolution {asked['resolution']} --json r.jsonl",
        "setting": asked,
        "label": f"{asked['arch']} {size}{batch}, {asked['steps']} steps, guidance 5",
        "runs": runs,
        "ours": list(ours),
        "peer": peer,
        "sides": sides,
        "ratios": ratios,
        "noise": QUIET,
        "roofline": ROOFLINE,
        "versions": VERSIONS,
        "machine": MACHINE,
        **fields,
    }


def growth(axis: str = "pixels", **fields: Any) -> Json:
    """Return a growth."""
    values = {"pixels": [256**2, 384**2, 512**2, 768**2], "controls": [0, 1, 2, 3]}[axis]
    points = []
    for value in values:
        size = value / 512**2 if axis == "pixels" else 1 + 0.31 * value
        stages = {
            "text_encoder": spread(47.0),
            "unet_step": spread(1180 * size**1.08),
            "vae_decoder": spread(2800 * size**1.02),
            "outside": spread(13 * size**0.8),
            "end_to_end": spread(24000 * size**1.07),
        }
        points.append({"value": value, "stages_ms": stages, "peak_bytes": int(2.1e9 + 5e8 * size)})
    fits = {
        "unet_step": {"exponent": 1.08, "low": 1.06, "high": 1.11, "misfit_percent": 0.4},
        "end_to_end": {"exponent": 1.07, "low": 1.05, "high": 1.09},
        "text_encoder": {"exponent": 0.01, "low": None, "high": None},
        "vae_decoder": {"linear": {"fixed": 1.0, "each": 2.0}},
        "peak_bytes": {"exponent": 0.21, "low": 0.15, "high": 0.28},
    }
    return {
        "schema": 3, "time": "2026-12-01T08:00:00+00:00", "kind": "growth",
        "command": f"sdengine bench growth --axis {axis} --arch sd15", "arch": "sd15",
        "backend": "native", "precision": "bf16", "axis": axis, "points": points, "fits": fits,
        "noise": {**QUIET, "drift_percent": -1.3}, "versions": VERSIONS, "machine": MACHINE,
        **fields,
    }  # fmt: skip


def profile(count: int = 120, **fields: Any) -> Json:
    """Return a profile of so many operations."""
    kinds = ("winograd", "linear", "attention", "conv", "group_norm", "layer_norm", "add", "copy")
    levels = ("first", "down 0", "down 1", "down 2", "mid", "up 1", "up 2", "up 3", "last")
    steps: list[Json] = []
    for index in range(count):
        kind = kinds[index * 5 % len(kinds)]
        flops = 0 if kind in ("add", "copy") else int(2e9 * (1 + index * 37 % 11) ** 1.6)
        flops //= 1 if kind in ("winograd", "linear", "attention", "conv") else 400
        moved = int(4e6 * (1 + index * 17 % 7))
        peak = 0.45 + 0.04 * (index % 9)
        ms = 1e3 * max(flops / 2.9e12, moved / 8.4e10) / peak
        steps.append({
            "index": index, "kind": kind, "level": levels[index * len(levels) // count],
            "name": f"/down_blocks.{index % 4}/attentions.{index % 2}/proj_{index}/MatMul",
            "ms": ms, "flops": flops, "bytes_read": moved, "bytes_written": moved // 3,
            "bound": "compute" if flops / 2.9e12 > moved / 8.4e10 else "memory",
            "percent_of_peak": 100 * peak if flops else None, "values": "bf16" if flops else "",
        })  # fmt: skip
    total = sum(step["ms"] for step in steps)
    steps = [{**step, "percent_of_time": 100 * step["ms"] / total} for step in steps]
    return {
        "schema": 3, "time": "2026-12-01T09:30:00+00:00", "kind": "profile",
        "command": "sdengine profile sd15-native --network unet --size 512x512",
        "bundle": "sd15-native", "backend": "native", "precision": "bf16", "network": "unet",
        "size": [512, 512], "rows": 2, "total_ms": spread(total, 3), "steps": steps,
        "roofline": ROOFLINE, "versions": VERSIONS, "machine": MACHINE, **fields,
    }  # fmt: skip


def hostile() -> list[Json]:
    """Return a record of each kind whose every text is hostile."""
    changed = comparison(
        EVIL,
        ours=["native bf16"],
        peer_side={"state": EVIL, "why": EVIL, "install": EVIL},
        label=EVIL,
        time=EVIL,
        command=EVIL,
        noise={**NOISY, "why": [EVIL]},
        versions={EVIL: EVIL},
        machine={"processor": EVIL, "affinity": [EVIL], "clock_mhz": EVIL, "isa": {EVIL: EVIL}},
        gpu={"name": EVIL, EVIL: [EVIL]},
        changes={"arch": EVIL, "task": EVIL, "device": EVIL},
    )
    changed["sides"]["native bf16"]["picture"] = "../secret.png"
    changed["sides"]["native bf16"]["memory"][EVIL] = 1e9
    changed["sides"]["native bf16"]["percent_of_peak"]["dtype"] = EVIL
    other = json.loads(json.dumps(changed))
    other["setting"]["threads"] = 2
    grown = growth(arch=EVIL, backend=EVIL, precision=EVIL, axis="pixels", command=EVIL)
    grown["axis"] = EVIL
    profiled = profile(6, bundle=EVIL, backend=EVIL, precision=EVIL, network=EVIL, command=EVIL)
    for step in profiled["steps"]:
        step |= {"name": EVIL, "kind": EVIL, "level": EVIL, "bound": EVIL, "values": EVIL}
    profiled["roofline"] = {**ROOFLINE, "flops_per_second": {EVIL: 1e12}}
    return [changed, other, grown, profiled]


def evening() -> list[Json]:
    """Return what an evening of measuring leaves: all kinds, states and ways to vary a setting."""
    alone = {"device": "cuda", "threads": None}
    return [
        comparison("eager fp32", pictures=True),
        comparison("openvino bf16", pictures=True, noise=NOISY),
        comparison("compile bf16", pictures=True, peer_side=OUT_OF_MEMORY),
        comparison("diffusers bf16", pictures=True, peer_side=FAILED),
        comparison("openvino-genai bf16", pictures=True, peer_side=NOT_RUN),
        comparison("stable-diffusion.cpp q8_0", pictures=True),
        comparison("eager fp32", changes={"threads": 2}, runs=1, ours=["native bf16"]),
        comparison(None, changes=alone, gpu={"name": "H200"}),
        growth(),
        growth("controls"),
        profile(40),
    ]


def picture_name(label: str) -> str:
    """Return the file of a side's picture."""
    return f"sd15-512-text-{label.replace(' ', '-')}.png"


def write_pictures(folder: Path, labels: Sequence[str] = tuple(SYSTEMS)) -> None:
    """Write pictures that differ a little from side to side."""
    y, x = np.mgrid[0:512, 0:512]
    for number, label in enumerate(labels):
        waves = 3 * number * np.sin(x / 31) * np.cos(y / 23)
        planes = (x / 2 + waves, y / 2 - waves, 128 + 100 * np.sin((x + y) / 90) + waves)
        content = np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)
        Image.fromarray(content).save(folder / picture_name(label))


def write_records(path: Path, records: Sequence[Json]) -> Path:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
