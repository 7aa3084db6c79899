"""Formats of files that change pictures: whole pictures beside diffusers', format by family.

    python benchmarks/adapter_formats.py      # the table and the record

Tiny networks of each family, equal prompts, seeds and noise, fp32, native target. Each file of
adapter_cases.py is given to a request and applied to diffusers' pipeline. Fails where the two
pictures are further apart than REQUIRED_DB, or where ours with the file and ours without it are
nearer than EFFECT_DB, so that no file passes by doing nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sdengine
from sdengine.benchmarks.accuracy_tables import adapter_formats as as_markdown
from sdengine.benchmarks.adapter_cases import FORMATS, NAME, SD1, SD2, SDXL, Format
from sdengine.benchmarks.measures import psnr
from sdengine.benchmarks.pictures import finish
from sdengine.benchmarks.records import RESULTS, stamped
from sdengine.benchmarks.seeded_ip_adapters import image_processor, save_encoder
from sdengine.benchmarks.tiny import TINY_SD15, TINY_SD21, TINY_SDXL
from sdengine.checkpoints.synthetic import make_synthetic

FAMILIES = {SD1: TINY_SD15, SD2: TINY_SD21, SDXL: TINY_SDXL}
REQUIRED_DB, EFFECT_DB = 40.0, 30.0
SIDE, STEPS, GUIDANCE_SCALE, SEED = 64, 3, 4.0, 5
PROMPT, NEGATIVE = f"a photo of {NAME} on a red circle", "blurry"
PLAIN = "no file"
Cell = Mapping[str, float]


class Family:
    """A family's engine and checkpoint.

    Args:
        name: of FAMILIES.
        folder: empty, for both.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.folder, self.is_xl = folder, name == SDXL
        make_synthetic(FAMILIES[name], folder / "base", seed=3, dtype=torch.float32)
        save_encoder(folder / "encoder")
        sdengine.build(
            folder / "base", folder / "bundle", resolutions=[SIDE], precision="fp32",
            image_encoder=folder / "encoder",
        )  # fmt: skip
        self.engine = sdengine.load(folder / "bundle", "native", "fp32")

    def pipeline(self) -> Any:
        """Return diffusers' pipeline of the checkpoint, as yet unchanged."""
        import diffusers
        import transformers

        library: Any = diffusers  # its annotations are incomplete
        encoder = transformers.CLIPVisionModelWithProjection.from_pretrained(
            self.folder / "encoder"
        )
        loaded = getattr(library, f"StableDiffusion{'XL' * self.is_xl}Pipeline").from_pretrained(
            self.folder / "base", image_encoder=encoder, feature_extractor=image_processor()
        )
        loaded.scheduler = library.EulerDiscreteScheduler.from_config(loaded.scheduler.config)
        loaded.set_progress_bar_config(disable=True)
        return loaded

    def ours(self, **fields: Any) -> Any:
        """Return our picture."""
        return self.engine.generate(
            PROMPT, NEGATIVE, steps=STEPS, guidance_scale=GUIDANCE_SCALE, seed=SEED, width=SIDE,
            height=SIDE, sampler="euler", schedule="normal", **fields,
        ).arrays[0]  # fmt: skip

    def theirs(self, pipeline: Any, **arguments: Any) -> Any:
        """Return the picture of a pipeline of diffusers."""
        made = pipeline(
            PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, height=SIDE, width=SIDE,
            guidance_scale=GUIDANCE_SCALE, generator=torch.Generator().manual_seed(SEED),
            **arguments,
        )  # fmt: skip
        return np.asarray(made.images[0])


@torch.no_grad()
def measure(
    family: Family, name: str, formats: Mapping[str, Format], say: Callable[[str], object]
) -> dict[str, Cell]:
    """Return by format the PSNR of ours against theirs, and against ours without the file."""
    without = family.ours()
    found: dict[str, Cell] = {
        PLAIN: {"against_reference": psnr(without, family.theirs(family.pipeline()))}
    }
    for title, form in formats.items():
        if name in form.absent:
            continue
        pipeline = family.pipeline()
        with tempfile.TemporaryDirectory() as place:
            applied = form.make(pipeline, Path(place))
            made = family.ours(**applied.request)
        found[title] = {
            "against_reference": psnr(made, family.theirs(pipeline, **applied.call)),
            "against_without": psnr(made, without),
        }
        say(f"{name}, {title}: {found[title]}")
    return found


def failures(cells: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    """Return a line for each cell that is far from the reference, or has no effect."""
    missed = []
    for title, by_family in cells.items():
        for family, cell in by_family.items():
            near, effect = cell["against_reference"], cell.get("against_without", 0.0)
            if near < REQUIRED_DB:
                missed.append(f"{title}, {family}: {near:.1f} dB, below {REQUIRED_DB:g} dB")
            if effect > EFFECT_DB:
                missed.append(f"{title}, {family}: without the file {effect:.1f} dB, no effect")
    return missed


def _silence() -> None:
    """Leave out what the libraries tell of every network that they load or change."""
    import diffusers
    import transformers

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    libraries: Any = (diffusers, transformers)  # their annotations are incomplete
    for library in libraries:
        library.utils.logging.disable_progress_bar()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 1 when a cell misses what is required."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--formats", help="only those whose names contain this")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    _silence()
    formats = {t: f for t, f in FORMATS.items() if (options.formats or "") in t}
    by_family: dict[str, dict[str, Cell]] = {}
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            family = Family(name, Path(place))
            with family.engine:
                by_family[name] = measure(family, name, formats, print)
    titles = [PLAIN, *formats]
    cells = {t: {n: found[t] for n, found in by_family.items() if t in found} for t in titles}
    figures = {
        "families": list(FAMILIES),
        "side": SIDE,
        "steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "required_db": REQUIRED_DB,
        "effect_db": EFFECT_DB,
        "references": {PLAIN: "diffusers", **{t: f.reference for t, f in formats.items()}},
        "absent": {t: f.absent for t, f in formats.items() if f.absent},
        "psnr_db": cells,
    }
    record = stamped(figures, "diffusers", "transformers", "peft", "lycoris-lora")
    path = options.output / "adapter-formats.json"
    return finish(record, path, as_markdown(record), failures(cells))


if __name__ == "__main__":
    sys.exit(main())
