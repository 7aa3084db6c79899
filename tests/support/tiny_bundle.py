"""A bundle whose networks are a few operations each: the whole run time without any weights.

The networks mean nothing, but each of their inputs changes the image, and `*_reference` says in
NumPy what they compute.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.bundle.manifest import Manifest
from sdengine.bundle.writer import write_bundle

HIDDEN = 8
LAYERS = 2
CHANNELS = 4
SCALING_FACTOR = 0.5
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
Array = NDArray[Any]
ADDED = np.zeros(1)
# What each added input of the U-Net counts per unit of its mean.
SHARES = {"text_embeds": 1.0, "time_ids": 1e-3, "timestep_cond": 1.0}
GUIDANCE_DIM = 6


def unet_reference(sample: Array, timestep: Array, embeds: Array, added: Array = ADDED) -> Array:
    """[B,4,h,w], [B], [B,S,D], sum of the added inputs' shares [B] -> [B,4,h,w]."""
    shift: Array = embeds.mean(axis=(1, 2)) + np.sin(timestep) + added
    noise_pred: Array = sample * 0.3 + shift[:, None, None, None]
    return noise_pred


def vae_decoder_reference(latents: Array) -> Array:
    """[B,4,h,w] -> [B,3,8h,8w]."""
    return np.tanh(latents[:, :3]).repeat(8, axis=2).repeat(8, axis=3)


def make_tiny_bundle(
    folder: Path, *, kind: str = "sd", max_batch: int = 2, broken: str = "", **changes: Any
) -> Path:
    """Write the bundle.

    Args:
        folder: where it shall be.
        kind: "sd"; "sdxl" with two text encoders and size conditioning; "refiner" with the second
            encoder alone and a score; "lcm" whose U-Net is told the guidance scale.
        max_batch: as in the manifest.
        broken: name of a network that shall give NaN.
        changes: other values for the manifest's top level.
    """

    def fill(temporary: Path) -> Manifest:
        encoders = _ENCODERS.get(kind, ("text_encoder",))
        _write_tokenizer(temporary, encoders)
        networks = {name: _text_encoder(broken == name) for name in encoders}
        networks["unet"] = _unet(kind, len(encoders), broken == "unet")
        networks["vae_decoder"] = _vae_decoder(broken == "vae_decoder")
        return _manifest(kind, _save(networks, temporary), max_batch, changes)

    return write_bundle(folder, fill)


_ENCODERS = {"sdxl": ("text_encoder", "text_encoder_2"), "refiner": ("text_encoder_2",)}
_ADDED = {
    "sdxl": {"text_embeds": HIDDEN, "time_ids": 6},
    "refiner": {"text_embeds": HIDDEN, "time_ids": 5},
    "lcm": {"timestep_cond": GUIDANCE_DIM},
}
_SIZE_CONDITIONING = {"sdxl": "size", "refiner": "aesthetic"}


def token_table_file(network: str) -> str:
    """Return the name of an encoder's token table."""
    return f"token_table{network.removeprefix('text_encoder')}.safetensors"


def _write_tokenizer(folder: Path, encoders: tuple[str, ...]) -> None:
    from safetensors.numpy import save_file

    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(code) for code in kept + list(range(256, 256 + 256 - len(kept)))]
    words = [character + "</w>" for character in characters]
    tokens = [*characters, *words, "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir()
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    for name in encoders:
        rng = np.random.default_rng(len(name))
        table = rng.standard_normal((len(tokens), HIDDEN), dtype=np.float32)
        save_file({"token_embedding": table}, folder / token_table_file(name))


def _inputs(**shapes: tuple[list[int], str]) -> dict[str, Any]:
    import openvino.opset13 as ops
    from openvino import PartialShape

    parameters = {}
    for name, (shape, dtype) in shapes.items():
        parameters[name] = ops.parameter(PartialShape(shape), dtype=np.dtype(dtype), name=name)
        parameters[name].output(0).set_names({name})
    return parameters


def _model(parameters: dict[str, Any], broken: bool, **outputs: Any) -> Any:
    import openvino.opset13 as ops
    from openvino import Model

    results = []
    for name, node in outputs.items():
        if broken:
            node = ops.multiply(node, np.float32(np.nan))
        result = ops.result(node)
        result.output(0).set_names({name})
        results.append(result)
    return Model(results, list(parameters.values()))


def _text_encoder(broken: bool) -> Any:
    import openvino.opset13 as ops

    p = _inputs(inputs_embeds=([-1, 77, HIDDEN], "float32"), eos_index=([-1], "int64"))
    x = p["inputs_embeds"]
    layers = [ops.unsqueeze(ops.multiply(x, np.float32(1 + i)), 0) for i in range(LAYERS + 1)]
    states = ops.concat(layers, 0)
    pooled = ops.gather(x, p["eos_index"], np.int64(1), batch_dims=0)
    pooled = ops.reduce_mean(pooled, np.array([1]), keep_dims=False)
    return _model(
        p, broken, hidden_states=states, normed_hidden_states=ops.tanh(states), pooled=pooled
    )


def _unet(kind: str, num_encoders: int, broken: bool) -> Any:
    import openvino.opset13 as ops

    added = _ADDED.get(kind, {})
    p = _inputs(
        sample=([-1, CHANNELS, -1, -1], "float32"),
        timestep=([-1], "float32"),
        encoder_hidden_states=([-1, -1, num_encoders * HIDDEN], "float32"),
        **{name: ([-1, size], "float32") for name, size in added.items()},
        down_residual_0=([-1, CHANNELS, -1, -1], "float32"),
        mid_residual=([-1, CHANNELS, -1, -1], "float32"),
    )
    mean = ops.reduce_mean(p["encoder_hidden_states"], np.array([1, 2]), keep_dims=False)
    shift = ops.add(mean, ops.sin(p["timestep"]))
    for name in added:
        share = ops.reduce_mean(p[name], np.array([1]), keep_dims=False)
        shift = ops.add(shift, ops.multiply(share, np.float32(SHARES[name])))
    shift = ops.unsqueeze(shift, np.array([1, 2, 3]))
    scaled = ops.multiply(p["sample"], np.float32(0.3))
    mid = ops.reduce_mean(p["mid_residual"], np.array([2, 3]), keep_dims=True)
    noise_pred = ops.add(ops.add(ops.add(scaled, shift), p["down_residual_0"]), mid)
    return _model(p, broken, noise_pred=noise_pred)


def _vae_decoder(broken: bool) -> Any:
    import openvino.opset13 as ops

    p = _inputs(latents=([-1, CHANNELS, -1, -1], "float32"))
    colours = ops.slice(p["latents"], np.array([0]), np.array([3]), np.array([1]), np.array([1]))
    larger = ops.interpolate(
        ops.tanh(colours),
        np.array([8.0, 8.0], dtype=np.float32),
        mode="nearest",
        shape_calculation_mode="scales",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        axes=np.array([2, 3]),
    )
    return _model(p, broken, images=larger)


def _save(networks: dict[str, Any], folder: Path) -> dict[str, Any]:
    import openvino

    symbols: dict[str, list[int | str]] = {
        "sample": ["batch", CHANNELS, "height/8", "width/8"],
        "latents": ["batch", CHANNELS, "height/8", "width/8"],
        "noise_pred": ["batch", CHANNELS, "height/8", "width/8"],
        "timestep": ["batch"],
        "encoder_hidden_states": ["batch", "sequence", HIDDEN],
        "down_residual_0": ["batch", CHANNELS, "height/8", "width/8"],
        "mid_residual": ["batch", CHANNELS, "height/64", "width/64"],
        "inputs_embeds": ["batch", 77, HIDDEN],
        "eos_index": ["batch"],
        "hidden_states": [LAYERS + 1, "batch", 77, HIDDEN],
        "normed_hidden_states": [LAYERS + 1, "batch", 77, HIDDEN],
        "pooled": ["batch", HIDDEN],
        "images": ["batch", 3, "height", "width"],
    }

    def tensor(port: Any) -> dict[str, Any]:
        name = port.get_any_name()
        dtype = "int64" if name == "eos_index" else "float32"
        shape: list[int | str] = list(symbols.get(name, ["batch", -1]))
        if shape[-1] not in ("width", "width/8", "width/64", "batch"):
            shape[-1] = int(port.get_partial_shape()[-1].get_length())
        return {"name": name, "shape": shape, "dtype": dtype}

    entries = {}
    for name, model in networks.items():
        openvino.save_model(model, str(folder / f"{name}.xml"), compress_to_fp16=False)
        entries[name] = {
            "files": [f"{name}.xml", f"{name}.bin"],
            "inputs": [tensor(port) for port in model.inputs],
            "outputs": [tensor(port) for port in model.outputs],
        }
    return entries


def _manifest(
    kind: str, networks: dict[str, Any], max_batch: int, changes: dict[str, Any]
) -> Manifest:
    encoders = [name for name in networks if name.startswith("text_encoder")]
    content = {
        "sdengine_version": "0.1.0",
        "name": "tiny",
        "target": "openvino",
        "precision": "fp32",
        "resolutions": [(64, 64), (128, 64)],
        "max_batch": max_batch,
        "architecture": {
            "family": "tiny",
            "text_encoders": [
                {
                    "network": name,
                    "token_table": token_table_file(name),
                    "hidden_size": HIDDEN,
                    "num_layers": LAYERS,
                    "hidden_state": {"index": -2, "kind": "raw"},
                    "bos_token_id": 512,
                    "eos_token_id": 513,
                }
                for name in encoders
            ],
            "pooled_from": "text_encoder_2" if "text_encoder_2" in encoders else None,
            "zero_empty_negative": kind == "sdxl",
            "unet": {
                "in_channels": CHANNELS,
                "cross_attention_dim": len(encoders) * HIDDEN,
                "size_conditioning": _SIZE_CONDITIONING.get(kind, "none"),
                "guidance_embed_dim": GUIDANCE_DIM if kind == "lcm" else None,
            },
            "vae": {"scaling_factor": SCALING_FACTOR, "latent_channels": CHANNELS},
            "scheduler": SCHEDULER,
        },
        "defaults": {"width": 64, "height": 64, "steps": 4},
        "networks": networks,
        "source": {"name": "tiny", "sha256": "0" * 64},
    }
    return Manifest.model_validate({**content, **changes})
