"""`sdengine inspect`: what a bundle holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sdengine.bundle.manifest import Manifest, TensorEntry


def inspect(
    bundle: Annotated[str, typer.Argument(help="Bundle, or demo.")] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show a bundle's model, target, sizes and networks; file sizes are checked, hashes not."""
    from sdengine.bundle.reader import open_bundle

    manifest = open_bundle(bundle, verify="size").manifest
    if as_json:
        print(json.dumps(manifest.model_dump(mode="json")))
    else:
        print("\n".join(_lines(manifest)))


def _lines(manifest: Manifest) -> list[str]:
    defaults = manifest.defaults
    architecture = manifest.architecture
    size_bytes = {entry.path: entry.size_bytes for entry in manifest.files}
    lines = [
        f"name        {manifest.name}",
        f"source      {manifest.source.name} (SHA-256 {manifest.source.sha256[:16]}...)",
        f"family      {architecture.family}",
        f"target      {manifest.target}, weights {manifest.precision}",
        f"sizes       {', '.join(f'{w}x{h}' for w, h in manifest.resolutions)}",
        f"max batch   {manifest.max_batch}",
        f"defaults    {defaults.width}x{defaults.height}, {defaults.steps} steps, "
        f"guidance {defaults.guidance_scale:g}, {defaults.sampler} {defaults.schedule}",
        *(
            f"text        {encoder.num_layers} layers of {encoder.hidden_size}, "
            f"{encoder.max_length} tokens"
            for encoder in architecture.text_encoders
        ),
        f"latents     {architecture.vae.latent_channels} channels, 1/{architecture.vae.downscale}"
        f" size, scaling {architecture.vae.scaling_factor:g}",
        f"built by    sdengine {manifest.sdengine_version}"
        + "".join(f", {name} {version}" for name, version in manifest.versions.items()),
        f"total       {sum(size_bytes.values()) / 1e6:.1f} MB in {len(size_bytes)} files",
    ]
    for name, network in manifest.networks.items():
        total_bytes = sum(size_bytes.get(path, 0) for path in network.files)
        lines.append(f"network     {name}: {total_bytes / 1e6:.1f} MB")
        lines += [f"              in  {_tensor(tensor)}" for tensor in network.inputs]
        lines += [f"              out {_tensor(tensor)}" for tensor in network.outputs]
    return lines


def _tensor(tensor: TensorEntry) -> str:
    return f"{tensor.name} {tensor.dtype} [{', '.join(str(size) for size in tensor.shape)}]"
