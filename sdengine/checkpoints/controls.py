"""Controls of a checkpoint: networks of other files that steer its U-Net, checked to fit it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdengine.bundle.controls import check_control_name, control_name, control_network
from sdengine.bundle.image_prompts import IMAGE_ENCODER
from sdengine.checkpoints.checkpoint import Checkpoint
from sdengine.checkpoints.control_file import read_control_file
from sdengine.checkpoints.controlnet import ControlCheckpoint, read_controlnet
from sdengine.checkpoints.folder import DEMO_EDGES
from sdengine.checkpoints.image_encoder import ImageEncoderCheckpoint
from sdengine.checkpoints.part_source import PartConfig, PartSource
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.controls import ControlConfig
from sdengine.models.t2i_adapter import T2IAdapterConfig
from sdengine.models.unet import UNetConfig

PathLike = str | os.PathLike[str]
MAX_CONTROLS = 32
# Of the published models; at other widths the kind of conditioning tells.
_BY_TEXT_WIDTH = {768: "sd1", 1024: "sd2", 1280: "sdxl-refiner", 2048: "sdxl"}


@dataclass(frozen=True)
class SteeredCheckpoint(PartSource):
    """A checkpoint together with what steers its U-Net; parts are called as a bundle's networks.

    Args:
        base: the checkpoint.
        controls: by name.
        image_encoder: for IP-Adapters, if any.
    """

    base: Checkpoint
    controls: Mapping[str, ControlCheckpoint]
    image_encoder: ImageEncoderCheckpoint | None = None

    @property
    def root(self) -> Path:  # type: ignore[override]
        """Where the checkpoint came from."""
        return self.base.root

    @property
    def name(self) -> str:  # type: ignore[override]
        """The checkpoint's."""
        return self.base.name

    @property
    def num_time_ids(self) -> int:
        """Of the U-Net."""
        return self.base.num_time_ids

    @property
    def configs(self) -> dict[str, PartConfig]:
        """Those of the checkpoint's networks, then those of the others."""
        own = {control_network(n): c.control_config for n, c in self.controls.items()}
        encoder = {} if self.image_encoder is None else self.image_encoder.configs
        return {**self.base.configs, **encoder, **own}

    def open_weights(self, part: str) -> Weights:
        """Open the files of a part."""
        own: PartSource | None = None
        if part not in self.base.configs:
            is_encoder = part == IMAGE_ENCODER
            own = self.image_encoder if is_encoder else self.controls.get(control_name(part))
        return (own or self.base).open_weights(part)


def open_controls(
    controls: Mapping[str, PathLike], checkpoint: Checkpoint
) -> dict[str, ControlCheckpoint]:
    """Open what shall steer a checkpoint's U-Net, by name.

    Args:
        controls: by name, folders as diffusers' ControlNetModel.save_pretrained writes them, or
            single files; "demo-edges" is the demo model's own.
        checkpoint: that they shall steer.

    Raises:
        ConfigError: a name is none, or there are more than MAX_CONTROLS.
        CheckpointError: one is missing, damaged or of another kind, or steers another U-Net.
    """
    if len(controls) > MAX_CONTROLS:
        raise ConfigError.for_field("controls", len(controls), f"at most {MAX_CONTROLS}")
    opened = {
        check_control_name(name): _open(name, path, checkpoint) for name, path in controls.items()
    }
    for name, control in opened.items():
        require_fit(name, control.root, control.control_config, checkpoint)
    return opened


def _open(name: str, path: PathLike, checkpoint: Checkpoint) -> ControlCheckpoint:
    try:
        place = DEMO_EDGES if path == "demo-edges" else Path(os.fsdecode(path))
    except TypeError:
        accepted = "the path of a folder or file, or 'demo-edges'"
        raise ConfigError.for_field(f"control {name}", path, accepted) from None
    try:
        is_folder, is_file = place.is_dir(), place.is_file()
    except (OSError, ValueError):
        is_folder = is_file = False
    if is_folder:
        return read_controlnet(place)
    if is_file:
        return read_control_file(place, checkpoint)
    raise CheckpointError.of_usage(
        f"control {name}: {str(path)[:200]!r} is neither a folder nor a file. Give a folder as "
        "diffusers writes them, with config.json and diffusion_pytorch_model.safetensors, or a "
        "single file."
    )


def require_fit(name: str, root: Path, config: ControlConfig, checkpoint: Checkpoint) -> None:
    """Refuse a control of another family of models.

    Args:
        name: of the control.
        root: its file or folder.
        config: its own, with that of the U-Net that it steers.
        checkpoint: whose U-Net it shall steer.

    Raises:
        CheckpointError: that is another one; the message names both families.
    """
    unet = checkpoint.unet_config
    if isinstance(config, T2IAdapterConfig):
        _require_adapter_fit(name, root, config, checkpoint)
        return
    steered = config.unet
    pairs = {
        "text embeddings of width": (steered.cross_attention_dim, unet.cross_attention_dim),
        "channels of its levels": (steered.block_out_channels, unet.block_out_channels),
        "residuals": (steered.residual_channels, unet.residual_channels),
        "picture pixels to a latent cell": (
            2 ** (len(config.conditioning_embedding_out_channels) - 1),
            checkpoint.vae_config.downscale,
        ),
        "latent channels": (steered.in_channels, checkpoint.vae_config.latent_channels),
        "added conditioning of": (
            steered.projection_class_embeddings_input_dim,
            unet.projection_class_embeddings_input_dim,
        ),
    }
    for what, (found, wanted) in pairs.items():
        if found != wanted:
            raise CheckpointError(
                f"control {name}: {root} is for {family_of_shapes(steered)} ({what} "
                f"{_shown(found)}); {checkpoint.name} is {checkpoint.family} ({_shown(wanted)}). "
                "Give a control that was trained for this model's family."
            )


def _require_adapter_fit(
    name: str, root: Path, config: T2IAdapterConfig, checkpoint: Checkpoint
) -> None:
    downscale = checkpoint.vae_config.downscale
    wanted = tuple((c, downscale << level) for c, level in checkpoint.unet_config.feature_places)
    if config.features != wanted:
        family = "sdxl" if config.adapter_type == "full_adapter_xl" else "sd1 or sd2"
        shown = ["; ".join(f"{c} at 1/{d}" for c, d in each) for each in (config.features, wanted)]
        raise CheckpointError(
            f"control {name}: {root} is a T2I-Adapter for {family} (features of {shown[0]}); "
            f"{checkpoint.name} is {checkpoint.family} ({shown[1]}). Give an adapter that was "
            "trained for this model's family."
        )


def family_of_shapes(unet: UNetConfig) -> str:
    """Return which family a U-Net's shapes are of, one of FAMILIES."""
    known = _BY_TEXT_WIDTH.get(unet.cross_attention_dim)
    return known or ("sd1" if unet.addition_embed_type is None else "sdxl")


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"{len(value)}: {', '.join(map(str, value))}"
    return str(value)
