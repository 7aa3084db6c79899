"""Contracts: names, shapes and dtypes of what each network of a bundle reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from torch import nn

from sdengine.bundle.controls import is_control
from sdengine.bundle.image_prompts import IMAGE_ENCODER
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import ConfigError
from sdengine.models.controlnet import ControlNetModel
from sdengine.models.controlnet_union import ControlNetUnionModel
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.models.image_encoder import CLIPImageEncoder
from sdengine.models.network_contract import FLOAT, INT, NetworkContract
from sdengine.models.positional import Joined, Method, PositionalControlNet, PositionalUNet
from sdengine.models.t2i_adapter import T2IAdapter
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.tiny_vae import TinyAutoencoder
from sdengine.models.unet import FEATURES, UNet2DConditionModel, UNetConfig
from sdengine.models.vae import AutoencoderKL

NETWORKS = (
    "text_encoder",
    "text_encoder_2",
    "unet",
    "vae_decoder",
    "vae_encoder",
    "tiny_decoder",
    "tiny_encoder",
)
CONTROLNET = "controlnet"
# Parts of its module that a network of a bundle leaves out: the autoencoder is two networks, and
# the token table is looked up on the host.
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "text_encoder": ("text_model.embeddings.token_embedding",),
    "text_encoder_2": ("text_model.embeddings.token_embedding",),
    "vae_decoder": ("encoder", "quant_conv"),
    "vae_encoder": ("decoder", "post_quant_conv"),
    "tiny_decoder": ("encoder",),
    "tiny_encoder": ("decoder",),
}


def text_encoder_contract(module: CLIPTextEncoder, name: str = "text_encoder") -> NetworkContract:
    """inputs_embeds, eos_index -> hidden_states, normed_hidden_states, pooled."""
    config = module.config
    width, length = config.hidden_size, config.max_position_embeddings
    states = (config.num_hidden_layers + 1, "batch", length, width)
    pooled = config.projection_dim if config.with_projection else width
    return NetworkContract(
        name=name,
        module=module,
        inputs=(
            TensorSpec("inputs_embeds", ("batch", length, width), FLOAT),
            TensorSpec("eos_index", ("batch",), INT),
        ),
        outputs=(
            TensorSpec("hidden_states", states, FLOAT),
            TensorSpec("normed_hidden_states", states, FLOAT),
            TensorSpec("pooled", ("batch", pooled), FLOAT),
        ),
        multiple=1,
    )


def unet_contract(
    module: UNet2DConditionModel,
    *,
    downscale: int = 8,
    controlnet: bool = True,
    adapters: bool = False,
    num_time_ids: int = 6,
) -> NetworkContract:
    """sample, timestep, encoder_hidden_states, [added], [residuals], [features] -> noise_pred.

    Args:
        module: the U-Net.
        downscale: pixels along one side of a latent cell.
        controlnet: read residuals that are added on the way up; zeros leave them out.
        adapters: read features that are added on the way down; zeros leave them out.
        num_time_ids: of each image, where the U-Net reads them: 6, or 5 for a refiner.
    """
    config = module.config
    inputs = [
        TensorSpec("sample", _map(config.in_channels, downscale), FLOAT),
        TensorSpec("timestep", ("batch",), FLOAT),
        TensorSpec(
            "encoder_hidden_states", ("batch", "sequence", config.cross_attention_dim), FLOAT
        ),
    ]
    added = _added_inputs(config, num_time_ids)
    inputs += added
    if controlnet:
        inputs += _residuals(config, downscale)
    if adapters:
        places = [(c, downscale << level) for c, level in config.feature_places]
        inputs += _features(places)
    return NetworkContract(
        name="unet",
        module=PositionalUNet(
            module, [spec.name for spec in added], controlnet, FEATURES if adapters else 0
        ),
        inputs=tuple(inputs),
        outputs=(TensorSpec("noise_pred", _map(config.out_channels, downscale), FLOAT),),
        multiple=size_multiple(config, downscale),
    )


def controlnet_contract(
    module: ControlNetModel,
    name: str = CONTROLNET,
    *,
    downscale: int = 8,
    num_time_ids: int = 6,
) -> NetworkContract:
    """sample, timestep, encoder_hidden_states, [added], controlnet_cond -> residuals at scale 1.

    A union ControlNet also reads control_type.

    Args:
        module: the ControlNet.
        name: of the network.
        downscale, num_time_ids: of the U-Net that it steers; see `unet_contract`.
    """
    config = module.config
    added = _added_inputs(config, num_time_ids)
    text = ("batch", "sequence", config.cross_attention_dim)
    control = _map(module.controlnet_config.conditioning_channels, 1)
    return NetworkContract(
        name=name,
        module=PositionalControlNet(module, [spec.name for spec in added]),
        inputs=(
            TensorSpec("sample", _map(config.in_channels, downscale), FLOAT),
            TensorSpec("timestep", ("batch",), FLOAT),
            TensorSpec("encoder_hidden_states", text, FLOAT),
            *added,
            TensorSpec("controlnet_cond", control, FLOAT),
            *_kinds(module),
        ),
        outputs=tuple(_residuals(config, downscale)),
        multiple=size_multiple(config, downscale),
    )


def t2i_adapter_contract(module: T2IAdapter, name: str) -> NetworkContract:
    """hint -> features at scale 1.

    Args:
        module: the adapter.
        name: of the network.
    """
    config = module.config
    cell = config.downscale_factor
    hint = _map(config.in_channels * cell**2, cell)
    return NetworkContract(
        name=name,
        module=Joined(module),
        inputs=(TensorSpec("hint", hint, FLOAT),),
        outputs=tuple(_features(config.features)),
        multiple=max(divisor for _, divisor in config.features),
    )


def _features(places: Sequence[tuple[int, int]]) -> list[TensorSpec]:
    return [
        TensorSpec(f"adapter_feature_{index}", _map(channels, divisor), FLOAT)
        for index, (channels, divisor) in enumerate(places)
    ]


def _kinds(module: ControlNetModel) -> list[TensorSpec]:
    if not isinstance(module, ControlNetUnionModel):
        return []
    return [TensorSpec("control_type", ("batch", module.union_config.num_control_type), FLOAT)]


def vae_decoder_contract(module: AutoencoderKL) -> NetworkContract:
    """Unscaled latents -> images in [-1,1]."""
    config = module.config
    latents = TensorSpec("latents", _map(config.latent_channels, config.downscale), FLOAT)
    return NetworkContract(
        name="vae_decoder",
        module=Method(module, module.decode),
        inputs=(latents,),
        outputs=(TensorSpec("images", _map(config.out_channels, 1), FLOAT),),
        multiple=config.downscale,
    )


def vae_encoder_contract(module: AutoencoderKL) -> NetworkContract:
    """Images in [-1,1] -> moments: the latents' mean, then their log-variance."""
    config = module.config
    moments = TensorSpec("moments", _map(2 * config.latent_channels, config.downscale), FLOAT)
    return NetworkContract(
        name="vae_encoder",
        module=Method(module, module.encode),
        inputs=(TensorSpec("images", _map(config.in_channels, 1), FLOAT),),
        outputs=(moments,),
        multiple=config.downscale,
    )


def tiny_decoder_contract(module: TinyAutoencoder) -> NetworkContract:
    """Scaled latents between -3 and 3 -> images in [0,1]; the caller bends and stretches them."""
    config = module.config
    (downscale,) = config.downscales
    return NetworkContract(
        name="tiny_decoder",
        module=module.decoder,
        inputs=(TensorSpec("latents", _map(config.latent_channels, downscale), FLOAT),),
        outputs=(TensorSpec("images", _map(config.out_channels, 1), FLOAT),),
        multiple=downscale,
    )


def tiny_encoder_contract(module: TinyAutoencoder) -> NetworkContract:
    """Images in [0,1] -> scaled latents."""
    config = module.config
    (downscale,) = config.downscales
    return NetworkContract(
        name="tiny_encoder",
        module=module.encoder,
        inputs=(TensorSpec("images", _map(config.in_channels, 1), FLOAT),),
        outputs=(TensorSpec("latents", _map(config.latent_channels, downscale), FLOAT),),
        multiple=downscale,
    )


def image_encoder_contract(module: CLIPImageEncoder) -> NetworkContract:
    """Squares of pictures side by side -> states before the last layer, embeddings of tokens."""
    config = module.config
    tokens, patch = config.num_tokens, config.patch_size
    return NetworkContract(
        name=IMAGE_ENCODER,
        module=module,
        inputs=(TensorSpec("patches", ("batch", 3, patch, tokens * patch), FLOAT),),
        outputs=(
            TensorSpec("states", ("batch", tokens, config.hidden_size), FLOAT),
            TensorSpec("embeds", ("batch", tokens, config.projection_dim), FLOAT),
        ),
        multiple=1,
    )


def has_weight(network: str, name: str) -> bool:
    """Say whether a network of a bundle holds the weight of that name in its module."""
    return not name.startswith(tuple(f"{part}." for part in LEFT_OUT.get(network, ())))


def size_multiple(config: UNetConfig, downscale: int = 8) -> int:
    """Return what height and width in pixels must be multiples of, so that levels fit together."""
    return int(downscale << (len(config.block_out_channels) - 1))


def _map(channels: int, divisor: int) -> tuple[int | str, ...]:
    suffix = f"/{divisor}" if divisor > 1 else ""
    return ("batch", channels, f"height{suffix}", f"width{suffix}")


def _residuals(config: UNetConfig, downscale: int) -> list[TensorSpec]:
    levels = zip(config.residual_channels, _residual_levels(config), strict=True)
    specs = [
        TensorSpec(f"down_residual_{index}", _map(channels, downscale << level), FLOAT)
        for index, (channels, level) in enumerate(levels)
    ]
    last = len(config.block_out_channels) - 1
    mid = _map(config.block_out_channels[-1], downscale << last)
    return [*specs, TensorSpec("mid_residual", mid, FLOAT)]


def _residual_levels(config: UNetConfig) -> list[int]:
    levels = [0]
    for level in range(len(config.block_out_channels)):
        levels += [level] * config.num_layers[level]
        if level < len(config.block_out_channels) - 1:
            levels.append(level + 1)
    return levels


def _added_inputs(config: UNetConfig, num_time_ids: int) -> list[TensorSpec]:
    added = []
    if config.addition_embed_type is not None:
        total = config.projection_class_embeddings_input_dim or 0
        pooled = total - num_time_ids * (config.addition_time_embed_dim or 0)
        if pooled < 1:
            raise ConfigError.for_field(
                "unet.projection_class_embeddings_input_dim",
                total,
                f"more than {num_time_ids} sizes of addition_time_embed_dim="
                f"{config.addition_time_embed_dim}",
            )
        added.append(TensorSpec("text_embeds", ("batch", pooled), FLOAT))
        added.append(TensorSpec("time_ids", ("batch", num_time_ids), FLOAT))
    if config.time_cond_proj_dim is not None:
        added.append(TensorSpec("timestep_cond", ("batch", config.time_cond_proj_dim), FLOAT))
    return added


class ContractOptions(TypedDict):
    """What a contract depends on besides its network; see `make_contract`."""

    downscale: int
    controlnet: bool
    adapters: bool
    num_time_ids: int


def make_contract(
    name: str,
    module: nn.Module,
    *,
    downscale: int = 8,
    controlnet: bool = True,
    adapters: bool = False,
    num_time_ids: int = 6,
    precision: str = "fp32",
) -> NetworkContract:
    """Return what a network reads and writes.

    Args:
        name: one of NETWORKS, "image_encoder", "controlnet", or what a bundle calls the network of
            a control.
        module: the CLIPTextEncoder, UNet2DConditionModel, AutoencoderKL, TinyAutoencoder,
            ControlNetModel, T2IAdapter or CLIPImageEncoder.
        downscale: pixels along one side of a latent cell (U-Net, ControlNet).
        controlnet: let the U-Net read ControlNet residuals.
        adapters: let it read a T2I-Adapter's features.
        num_time_ids: sizes and scores that a U-Net with size conditioning reads.
        precision: "fp32", "bf16" or "fp16": of weights, inputs and outputs, except timesteps and
            sizes.

    Raises:
        ConfigError: the precision or the network is unknown, or the module is of another kind.
    """
    if precision not in TORCH_DTYPES:
        raise ConfigError.for_field("precision", precision, ", ".join(TORCH_DTYPES))
    contract = None
    if name.startswith("text_encoder") and isinstance(module, CLIPTextEncoder):
        contract = text_encoder_contract(module, name)
    elif name == "unet" and isinstance(module, UNet2DConditionModel):
        contract = unet_contract(
            module,
            downscale=downscale,
            controlnet=controlnet,
            adapters=adapters,
            num_time_ids=num_time_ids,
        )
    elif (name == CONTROLNET or is_control(name)) and isinstance(module, T2IAdapter):
        contract = t2i_adapter_contract(module, name)
    elif (name == CONTROLNET or is_control(name)) and isinstance(module, ControlNetModel):
        contract = controlnet_contract(module, name, downscale=downscale, num_time_ids=num_time_ids)
    elif name == "vae_decoder" and isinstance(module, AutoencoderKL):
        contract = vae_decoder_contract(module)
    elif name == "vae_encoder" and isinstance(module, AutoencoderKL):
        contract = vae_encoder_contract(module)
    elif name == "tiny_decoder" and isinstance(module, TinyAutoencoder):
        contract = tiny_decoder_contract(module)
    elif name == "tiny_encoder" and isinstance(module, TinyAutoencoder):
        contract = tiny_encoder_contract(module)
    elif name == IMAGE_ENCODER and isinstance(module, CLIPImageEncoder):
        contract = image_encoder_contract(module)
    if contract is None:
        raise ConfigError.for_field(
            "network",
            f"{name} of {type(module).__name__}",
            f"{', '.join((*NETWORKS, IMAGE_ENCODER, CONTROLNET))} of its own module",
        )
    return contract.in_precision(precision)
