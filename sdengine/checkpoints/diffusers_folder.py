"""Diffusers folders: a folder a network, with its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdengine.adapters.sources.renaming import Renamer, current_name
from sdengine.checkpoints.added_tokens import ADDED, TokenizerSettings
from sdengine.checkpoints.checkpoint import TEXT_ENCODERS, Checkpoint
from sdengine.checkpoints.guesses import Guess
from sdengine.checkpoints.model_index import read_entries
from sdengine.checkpoints.tokenizer_files import read_tokenizer, read_vocabulary
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.text_encoder import TextEncoderConfig
from sdengine.models.unet import UNetConfig
from sdengine.models.vae import VAEConfig
from sdengine.storage.checkpoint_folder import DIFFUSERS_STEMS, CheckpointFolder, weight_stems

EXTRAS_FILE = "sdengine.json"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}

_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}


def read_folder(root: Path, *, variant: str | None = None) -> Checkpoint:
    """Open a folder as diffusers' save_pretrained writes it.

    Args:
        root: an existing folder.
        variant: which of several sets of weights, such as "fp16"; None for the plain one.

    Raises:
        CheckpointError: it is incomplete, damaged, of another kind of model, or no network has the
            variant.
    """
    folder = CheckpointFolder(root)
    index = folder.json("model_index.json")
    not_taken_over = _not_taken_over(root, index)
    parts = _parts(root, index)
    texts = [part for part in TEXT_ENCODERS if part in parts]
    unet = part_config(folder, "unet", UNetConfig.from_dict)
    is_xl = unet.addition_embed_type is not None
    scheduler = _scheduler(folder, index)
    tokenizers = {part: TokenizerSettings(folder, TOKENIZERS[part]) for part in texts}
    plain = _without_variant(folder, [*texts, "unet", "vae"], variant)
    return Checkpoint(
        root=root,
        name=root.resolve().name[:200] or "checkpoint",
        unet_config=unet,
        vae_config=part_config(folder, "vae", VAEConfig.from_dict),
        text_encoder_configs={
            part: part_config(folder, part, TextEncoderConfig.from_dict) for part in texts
        },
        pad_tokens={part: tokenizers[part].pad_token for part in texts},
        scheduler_config=scheduler,
        defaults=_defaults(folder, unet, scheduler),
        # What diffusers assumes of SDXL folders that do not say it.
        zero_empty_negative=is_xl and _flag(root, index, "force_zeros_for_empty_prompt", True),
        requires_aesthetic_score=_flag(root, index, "requires_aesthetics_score", False),
        open_weights=lambda part: open_folder_weights(
            folder, part, part, None if part in plain else variant
        ),
        guesses=tuple(_guess_plain(part, variant) for part in plain),
        read_tokenizer=lambda: _tokenizer_files(folder, [TOKENIZERS[part] for part in texts]),
        max_lengths={part: one.max_length for part, one in tokenizers.items()},
        not_taken_over=not_taken_over,
        **_build_defaults(folder),
    )


def _without_variant(folder: CheckpointFolder, parts: list[str], variant: str | None) -> list[str]:
    """Return the networks whose plain weights are taken because the variant has none of them.

    Raises:
        CheckpointError: it has none of any network.
    """
    if variant is None:
        return []
    plain = [part for part in parts if not folder.has_weights(part, weight_stems(part), variant)]
    if plain == parts:
        raise CheckpointError(
            f"{folder.root}: there are no weights of variant {variant!r}, such as "
            f"unet/{DIFFUSERS_STEMS[0]}.{variant}.safetensors."
        )
    return plain


def _guess_plain(part: str, variant: str | None) -> Guess:
    return Guess(f"weights of {part}", "plain", f"there are none of variant {variant}", "--variant")


def open_folder_weights(
    folder: CheckpointFolder,
    part: str,
    subfolder: str,
    variant: str | None,
    rename: Renamer | None = None,
) -> Weights:
    """Find and open the weights of one network.

    Args:
        folder: where to look.
        part: which network, for its parameters' names.
        subfolder: its place in the folder, or "." for the folder itself.
        variant: such as "fp16", or None.
        rename: gives the names of today; None for what is known of the part.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    files = folder.weight_files(subfolder, weight_stems(part), variant)
    return Weights(files, rename or (lambda name: current_name(part, name)))


def part_config(folder: CheckpointFolder, part: str, read: Callable[[dict[str, Any]], Any]) -> Any:
    """Read a network's config.json.

    Raises:
        CheckpointError: it is missing, damaged, or describes what is not implemented.
    """
    name = f"{part}/config.json"
    try:
        return read(folder.json(name))
    except ConfigError as error:
        raise CheckpointError(f"{folder.root / name}: {error}") from None


def _parts(root: Path, index: dict[str, Any]) -> set[str]:
    """Return which networks there are; refuse models of other kinds."""
    kind = str(index.get("_class_name"))[:80]
    found = set()
    for part, accepted in _CLASSES.items():
        entry = index.get(part)
        class_name = entry[-1] if isinstance(entry, list) and entry else None
        if class_name is None and part in TEXT_ENCODERS:
            continue
        if class_name not in accepted:
            raise CheckpointError(
                f"{root / 'model_index.json'}: {part} is {str(class_name)[:80]!r} of a {kind!r}; "
                f"expected {' or '.join(accepted)}. This is not a Stable Diffusion 1, 2 or XL "
                "checkpoint."
            )
        found.add(part)
    if not found & set(TEXT_ENCODERS):
        raise CheckpointError(
            f"{root / 'model_index.json'}: a {kind!r} without a text encoder. This is not a Stable "
            "Diffusion checkpoint."
        )
    return found


def _not_taken_over(root: Path, index: dict[str, Any]) -> tuple[str, ...]:
    try:
        return tuple(read_entries(index))
    except ConfigError as error:
        raise CheckpointError(f"{root / 'model_index.json'}: {error}") from None


def _scheduler(folder: CheckpointFolder, index: dict[str, Any]) -> dict[str, Any]:
    """Return the scheduler's file; the index names its class where it does not."""
    config = folder.json(SCHEDULER_FILE)
    entry = index.get("scheduler")
    if "_class_name" in config or not isinstance(entry, list) or not entry:
        return config
    return {"_class_name": entry[-1], **config}


def _flag(root: Path, index: dict[str, Any], key: str, default: bool) -> bool:
    value = index.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{root / 'model_index.json'}: {key} is {str(value)[:40]!r}.")
    return value


def _defaults(
    folder: CheckpointFolder, unet: UNetConfig, scheduler: dict[str, Any]
) -> dict[str, Any]:
    """Return what requests take that name nothing: as the folder says, or as the model works."""
    extras = _extras(folder)
    if "defaults" not in extras:
        return distilled_defaults(unet, scheduler)
    defaults = extras["defaults"]
    if not isinstance(defaults, dict):
        raise CheckpointError(f"{folder.root / EXTRAS_FILE}: defaults is not an object.")
    return defaults


def _extras(folder: CheckpointFolder) -> dict[str, Any]:
    """Read the optional `sdengine.json`, which diffusers does not know."""
    return {} if folder.find(EXTRAS_FILE) is None else folder.json(EXTRAS_FILE)


def _build_defaults(folder: CheckpointFolder) -> dict[str, Any]:
    """Return the sizes and the batch that bundles are built for if none are named."""
    extras = _extras(folder)
    resolutions, batch = extras.get("resolutions", []), extras.get("batch", 1)
    if not isinstance(resolutions, list) or type(batch) is not int:
        raise CheckpointError(
            f"{folder.root / EXTRAS_FILE}: resolutions is not a list, or batch is not an integer."
        )
    return {"resolutions": tuple(resolutions), "batch": batch}


def distilled_defaults(unet: UNetConfig, scheduler: dict[str, Any]) -> dict[str, Any]:
    """Return what models want that were distilled to a few steps; nothing for others.

    Source: "Latent Consistency Models" (Luo et al. 2023), section 4.1, where guidance is an input
    of the network; "Adversarial Diffusion Distillation" (Sauer et al. 2023), section 4, one to
    four steps without guidance, published with ancestral sampling at trailing timesteps.
    """
    kind = scheduler.get("_class_name")
    if unet.time_cond_proj_dim is not None:
        return {"sampler": "lcm", "schedule": "normal", "steps": 4, "guidance_scale": 8.0}
    if kind == "LCMScheduler":
        return {"sampler": "lcm", "schedule": "normal", "steps": 4, "guidance_scale": 1.0}
    if (
        kind == "EulerAncestralDiscreteScheduler"
        and scheduler.get("timestep_spacing") == "trailing"
    ):
        return {"sampler": "euler_a", "schedule": "normal", "steps": 1, "guidance_scale": 1.0}
    return {}


def _tokenizer_files(folder: CheckpointFolder, tokenizers: list[str]) -> dict[str, bytes]:
    files = [read_tokenizer(folder, tokenizer) for tokenizer in tokenizers]
    contents = [(read_vocabulary(one), one.get(ADDED)) for one in files]
    if any(other != contents[0] for other in contents[1:]):
        raise CheckpointError(
            f"{folder.root}: {' and '.join(tokenizers)} differ; the text encoders of Stable "
            "Diffusion share one vocabulary."
        )
    return files[0]
