"""Engine over networks that are being trained: the same code that answers requests.

Its bundle gives tokenizer, tables and noise schedule; the networks are those in memory, with all
that is hooked to them, so that nothing is written or built again for a sample sheet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import nn

from sdengine.adapters.weight_set import WeightSet
from sdengine.backends.base import DEFAULTS, Session, SessionOptions
from sdengine.backends.memory_budget import unplanned_budget
from sdengine.backends.torch.eager import TorchBackend, TorchSession
from sdengine.building.build import build
from sdengine.bundle.manifest import MANIFEST_NAME
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.engine import Engine
from sdengine.storage.whole_file import whole_file
from sdengine.training.scenes import Image
from sdengine.training.tuning.networks import Networks
from sdengine.training.tuning.pictures import ENDINGS, read_pixels

_MADE = re.compile(r"class-\d{5}\.png")
COLUMNS = 4  # of a sample sheet: pictures of one prompt


class _LiveSession(TorchSession):
    """A session whose networks are in memory already."""

    def __init__(self, bundle: Bundle, modules: Mapping[str, nn.Module], device: str) -> None:
        # As many threads as the training has: another number would round its sums differently.
        budget = unplanned_budget(_LiveBackend.name, None)
        super().__init__(bundle, "fp32", torch.get_num_threads(), budget, device)
        self._live = modules

    def dtype_of(self, network: str) -> torch.dtype:
        """Return what a network's weights are held in."""
        return next(self._live[network].parameters()).dtype

    def _read(self, network: str, dtype: torch.dtype, weights: WeightSet) -> nn.Module:
        return self._live[network]


class _LiveBackend(TorchBackend):
    """Run a bundle of target `torch` with networks that are in memory."""

    def __init__(self, modules: Mapping[str, nn.Module], device: str) -> None:
        self._modules, self._device = modules, device

    def open(self, bundle: Bundle, options: SessionOptions = DEFAULTS) -> Session:
        """Make a session."""
        return _LiveSession(bundle, self._modules, self._device)


class LiveEngine:
    """Make pictures with networks as they are at the moment.

    Args:
        networks: of a checkpoint.
        folder: receives a bundle, once.
        size: width and height of the pictures.
        control: name and folder of a ControlNet before its training, and its module.
    """

    def __init__(
        self,
        networks: Networks,
        folder: Path,
        size: tuple[int, int],
        control: tuple[str, Path, nn.Module] | None = None,
    ) -> None:
        modules: dict[str, nn.Module] = {"unet": networks.unet, **networks.text_encoders}
        modules |= dict.fromkeys(("vae_encoder", "vae_decoder"), networks.vae)
        controls = {}
        if control is not None:
            name, place, module = control
            modules[f"control_{name}"] = module
            controls[name] = place
        if not (folder / MANIFEST_NAME).is_file():
            build(
                networks.checkpoint, folder, target="torch", resolutions=[size], controls=controls
            )
        self._bundle = open_bundle(folder)
        self._backend = _LiveBackend(modules, str(networks.device))
        self._size = size

    def pictures(self, requests: Sequence[Mapping[str, Any]]) -> list[Image]:
        """Return a picture for each request; nothing is kept of earlier calls.

        Raises:
            ConfigError: a request is not accepted.
        """
        width, height = self._size
        with Engine(self._bundle, self._backend) as engine:
            return [
                np.asarray(engine.generate(width=width, height=height, **one).arrays[0])
                for one in requests
            ]

    def sheet(self, prompts: Sequence[str], more: Callable[[int], Mapping[str, Any]]) -> Image:
        """Return pictures of prompts, a row for each and COLUMNS seeds.

        Args:
            prompts: of the rows.
            more: gives further keywords of the request of a column.
        """
        requests = [
            {"prompt": prompt, "seed": column, **more(column)}
            for prompt in prompts
            for column in range(COLUMNS)
        ]
        made = self.pictures(requests)
        rows = [made[i : i + COLUMNS] for i in range(0, len(made), COLUMNS)]
        return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def own_pictures(folder: Path) -> list[Path]:
    """Return the pictures in a folder and the folders in it, but those that were made here."""
    found = folder.rglob("*") if folder.is_dir() else ()
    pictures = (one for one in found if one.suffix.lower() in ENDINGS and one.is_file())
    shown = (one for one in pictures if not one.name.startswith("."))
    return sorted(one for one in shown if not (one.parent == folder and _MADE.fullmatch(one.name)))


def make_class_pictures(
    engine: Callable[[], LiveEngine],
    folder: Path,
    prompt: str,
    count: int,
    seed: int,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Fill a folder up to a count of pictures of a prompt, each a whole file or not there.

    Args:
        engine: called where a picture lacks; its networks must be untouched.
        folder: which is made if it is not there.
        prompt: of the class.
        count: of pictures there shall be; others that are there count too.
        seed: of the first one.
        report: called with (done, count).

    Raises:
        ConfigError: a picture that is there cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"class-{number:05d}.png" for number in range(count)]
    own = own_pictures(folder)
    lacking = [n for n in names[: max(0, count - len(own))] if not (folder / n).exists()]
    for one in own if lacking else ():  # before the long work, not after it
        read_pixels("class_folder", one)
    made = engine() if lacking else None
    for done, name in enumerate(lacking):
        if report is not None:
            report(done, len(lacking))
        assert made is not None
        number = names.index(name)
        (picture,) = made.pictures([{"prompt": prompt, "seed": seed + number}])
        with whole_file(folder / name) as file:
            PILImage.fromarray(picture).save(file, "PNG")
