"""Open a checkpoint that is one file with the original names, as if it were a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sdengine.checkpoints.folder import CheckpointFolder, demo_tokenizer_dir
from sdengine.checkpoints.original_names import (
    UNET,
    VAE,
    Place,
    text_place,
    unet_place,
    vae_place,
)
from sdengine.checkpoints.pickled import read_pickled
from sdengine.checkpoints.tokenizer_files import read_tokenizer
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.configs import FAMILIES, ModelFamily
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
PREDICTION_TYPES = ("epsilon", "v_prediction")
_FIRST = f"{UNET}input_blocks.0.0.weight"
_FAMILY_NAMES = {"sd15": "sd1", "sd21": "sd2", "lcm": "sd1"}
_SIGNS = {
    "conditioner.embedders.1.model.ln_final.weight": "sdxl",
    "conditioner.embedders.0.model.ln_final.weight": "sdxl-refiner",
    "cond_stage_model.model.ln_final.weight": "sd21",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": "sd15",
}
_TEXT_PREFIXES = {
    "sd15": ("cond_stage_model.transformer.",),
    "sd21": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "sdxl-refiner": ("conditioner.embedders.0.model.",),
}


class TensorFile(Protocol):
    """Tensors by name, read when asked for."""

    def names(self) -> set[str]:
        """Return the names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, mapped from the file."""
        ...


class _Safetensors:
    def __init__(self, path: Path) -> None:
        try:
            handle: Any = safe_open(path, framework="pt")
            self._handle = handle
            self._names: set[str] = set(handle.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: not a complete safetensors file: {error}. Get the file again."
            ) from None

    def names(self) -> set[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle.get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._handle.get_tensor(name)
        return tensor


class _Pickled:
    def __init__(self, path: Path) -> None:
        self._tensors = read_pickled(path)

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def open_tensors(path: Path) -> TensorFile:
    """Open a safetensors file or a torch archive; no code of it runs.

    Raises:
        CheckpointError: it is damaged or something else.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path}: expected a file ending in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist or is not a file.")
    return _Safetensors(path) if path.suffix.lower() == ".safetensors" else _Pickled(path)


class SingleFileCheckpoint:
    """The networks of one file; the same attributes as those of a `Checkpoint`.

    Args:
        path: the file.
        vae: another file whose autoencoder is taken instead, with or without the prefix.
        family: a key of FAMILIES; None tells it from the names.
        prediction_type: "epsilon" or "v_prediction"; None is the family's own: v for SD 2, unless
            the file says otherwise, epsilon for the others.

    Raises:
        CheckpointError: the file is damaged or of another kind of model.
    """

    def __init__(
        self,
        path: Path,
        *,
        vae: str | os.PathLike[str] | None = None,
        family: str | None = None,
        prediction_type: str | None = None,
    ) -> None:
        self.root = path
        self.name = path.stem[:200] or "checkpoint"
        self._file = open_tensors(path)
        self._vae_file = self._file if vae is None else open_tensors(Path(vae))
        self._model = _choose_family(path, self._file.names(), family)
        self._layout = self._model.name.removeprefix("tiny-")
        if prediction_type not in (None, *PREDICTION_TYPES):
            accepted = ", ".join(PREDICTION_TYPES)
            raise ConfigError.for_field("prediction_type", prediction_type, accepted)
        self._prediction_type = prediction_type or _prediction_type(self._file, self._model)
        self.family = _FAMILY_NAMES.get(self._layout, self._layout)
        self._check_channels()
        self.unet_config = self._model.unet
        self.vae_config = self._model.vae
        self.text_encoder_configs = dict(
            zip(self._model.text_parts, self._model.text_encoders, strict=True)
        )
        self.parts = (*self.text_encoder_configs, "unet", "vae")
        self.pad_tokens = dict(zip(self._model.text_parts, self._model.pad_tokens, strict=True))
        self.requires_aesthetic_score = self._model.requires_aesthetic_score
        self.zero_empty_negative = self.family == "sdxl"
        self.defaults: dict[str, Any] = {}

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule that the family was trained with, in diffusers' form."""
        from sdengine.checkpoints.synthetic import scheduler_config

        return {**scheduler_config(self._model), "prediction_type": self._prediction_type}

    def unet(self, dtype: torch.dtype | None = torch.float32) -> UNet2DConditionModel:
        """Return the U-Net with its weights."""
        config = self.unet_config
        module = self._load(
            self._file,
            lambda: UNet2DConditionModel(config),
            lambda name: unet_place(name, config),
            dtype,
        )
        assert isinstance(module, UNet2DConditionModel)
        return module

    def vae(self, dtype: torch.dtype | None = torch.float32) -> AutoencoderKL:
        """Return the autoencoder with its weights."""
        config = self.vae_config
        prefix = VAE if any(n.startswith(VAE) for n in self._vae_file.names()) else ""
        module = self._load(
            self._vae_file,
            lambda: AutoencoderKL(config),
            lambda name: vae_place(name, config, prefix),
            dtype,
        )
        assert isinstance(module, AutoencoderKL)
        return module

    def text_encoder(
        self, dtype: torch.dtype | None = torch.float32, part: str = "text_encoder"
    ) -> CLIPTextEncoder:
        """Return a text encoder with its weights."""
        config = self.text_encoder_configs[part]
        layout = "sd15" if self._layout == "lcm" else self._layout
        prefix = _TEXT_PREFIXES[layout][list(self.text_encoder_configs).index(part)]
        module = self._load(
            self._file,
            lambda: CLIPTextEncoder(config),
            lambda name: text_place(name, config, prefix),
            dtype,
        )
        assert isinstance(module, CLIPTextEncoder)
        return module

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return CLIP's vocabulary, which the file leaves out and every family shares."""
        return read_tokenizer(CheckpointFolder(demo_tokenizer_dir().parent))

    @cached_property
    def sha256(self) -> str:
        """Identify the content: the file's hash."""
        digest = hashlib.sha256()
        with self.root.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def _check_channels(self) -> None:
        shape = self._file.shape(_FIRST)
        expected = (self._model.unet.block_out_channels[0], self._model.unet.in_channels, 3, 3)
        if shape != expected:
            raise CheckpointError(
                f"{self.root}: {_FIRST} is {list(shape)}; {self._model.name} has "
                f"{list(expected)}. A U-Net of 9 channels is for inpainting, one of 5 for depth; "
                "neither makes pictures from text alone."
            )

    def _load(
        self,
        source: TensorFile,
        make: Callable[[], nn.Module],
        place: Callable[[str], Place],
        dtype: torch.dtype | None,
    ) -> nn.Module:
        with torch.device("meta"):
            module = make()
        shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
        places = {name: place(name) for name in shapes}
        missing = [p.name for p in places.values() if p.name not in source.names()]
        if missing:
            raise CheckpointError(
                f"{self.root}: {len(missing)} of {len(places)} weights of {self._model.name} are "
                f"missing, first {missing[0]!r}. Is it of another family?"
            )
        state = {name: self._tensor(source, places[name], shapes[name], dtype) for name in shapes}
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False).eval()

    def _tensor(
        self, source: TensorFile, place: Place, shape: tuple[int, ...], dtype: torch.dtype | None
    ) -> torch.Tensor:
        tensor = source.tensor(place.name)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{self.root}: {place.name!r} is {tensor.dtype}, not a float.")
        if place.third is not None and tensor.shape[0] % 3 == 0:
            tensor = tensor.chunk(3)[place.third]
        if place.transposed:
            tensor = tensor.T
        # A product over channels is a convolution of one pixel in some files and not in others.
        squeezed = tuple(tensor.shape) == (*shape, 1, 1)
        unsqueezed = shape[2:] == (1, 1) and tuple(tensor.shape) == shape[:2]
        if squeezed or unsqueezed:
            tensor = tensor.reshape(shape)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.root}: {place.name!r} is {list(tensor.shape)}; {self._model.name} has "
                f"{list(shape)}."
            )
        return tensor.to(dtype=dtype or tensor.dtype).contiguous()


def _choose_family(path: Path, names: set[str], family: str | None) -> ModelFamily:
    if _FIRST not in names:
        raise CheckpointError(
            f"{path}: there is no {_FIRST!r}, so it is no Stable Diffusion checkpoint in one file. "
            "A LoRA, an embedding or a part alone cannot be built."
        )
    if family is not None:
        if family not in FAMILIES:
            raise ConfigError.for_field("family", family, f"one of {', '.join(FAMILIES)}")
        return FAMILIES[family]
    for sign, name in _SIGNS.items():
        if sign in names:
            if name == "sd15" and f"{UNET}time_embed.cond_proj.weight" in names:
                return FAMILIES["lcm"]
            return FAMILIES[name]
    raise CheckpointError(
        f"{path}: no text encoder is in it that tells the family. Give it with family=, one of "
        f"{', '.join(FAMILIES)}."
    )


def _prediction_type(file: TensorFile, model: ModelFamily) -> str:
    # Merging tools mark v-prediction with an empty tensor of this name.
    return "v_prediction" if "v_pred" in file.names() else model.prediction_type
