"""Loading: a bundle opened by the arguments that a caller gives, with an engine that runs it."""

from __future__ import annotations

import os

from sdengine.backends import select_backend
from sdengine.backends.base import PRECISIONS, VAE_TILES, SessionOptions
from sdengine.bundle.reader import open_bundle
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.images.provenance import Bands, read_bands
from sdengine.inputs.given_files import ByFile
from sdengine.inputs.loras import Strength
from sdengine.inputs.models import Given
from sdengine.request.fields import Integer
from sdengine.request.request import FIELDS


def load(
    bundle: str | os.PathLike[str] = "demo",
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    low_memory: bool = False,
    memory_bytes: int | None = None,
    device: int | None = None,
    embeddings: str | os.PathLike[str] | None = None,
    loras: ByFile[Strength] | None = None,
    vae_tiles: str = "auto",
    model: Given | None = None,
    loras_folder: str | os.PathLike[str] | None = None,
    hypernetworks: ByFile[float] | None = None,
    hypernetworks_folder: str | os.PathLike[str] | None = None,
    vae_bands: Bands = (),
    split_guidance: str | None = None,
) -> Engine:
    """Open a bundle and make an engine that runs it.

    Args:
        bundle: the folder that `sdengine.build` wrote, or "demo" for the one in the package.
        backend: "auto" for what the bundle was built for, or a backend's name.
        precision: what the networks compute in: "fp32", "bf16", "fp16", "int8", each where the
            target has it, or "auto" for the backend's choice; engines for a GPU compute in what
            they were built in.
        threads: CPU threads, or None for the runtime's choice.
        low_memory: free each network's memory once a request no longer needs it, and load it again
            for the next request.
        memory_bytes: the most that a bundle for a GPU may take of its memory, or one of target
            native of the machine's, whose convolutions then use smaller weights where they must;
            None for what is free. Image sizes that would take more are refused before anything
            runs.
        device: number of the GPU that runs the bundle, as CUDA counts them; None is 0.
        embeddings: a folder of textual inversions, or a file, that prompts may name from the start;
            see `Engine.add_embeddings`.
        loras: files of LoRAs and their kin, or folders that PEFT or diffusers wrote, with a
            strength for each (0.8), or one for the text encoders and one for the U-Net
            ((0.5, 0.8)), from -100 to 100, for requests that give none; see `Engine.set_weights`.
        model: a checkpoint, or several with their shares, whose weights take the place of the
            bundle's for requests that give none; see `Engine.set_weights`.
        loras_folder: a folder of LoRAs that prompts may name in tags; see `Engine.add_loras`.
        hypernetworks: files with their strengths, for requests that give none; see
            `Engine.set_weights`.
        hypernetworks_folder: a folder of those that prompts may name in tags.
        vae_tiles: with target native, compute the largest maps of the VAE in bands: "auto" where
            they fit no other way, "always", which takes the least memory and more time, or "never".
            Pictures are the same but for rounding.
        vae_bands: of a result's provenance: with target native and "auto", these are computed in
            the same bands again, so that the pictures are the same to the byte.
        split_guidance: evaluate the unconditional and the conditional rows of each step at the same
            time at two places. With target native they are two groups of processors, to which
            their threads are bound: "numa" for a half of the machine's NUMA nodes each, or two
            lists of processors ("0-15/16-31"). `threads` are then those of both, at most one a
            processor. Where the groups have NUMA nodes of their own, each has a copy of the
            U-Net's and the controls' weights in its memory. Pictures are the same to the byte.
            With targets tensorrt-rtx and tensorrt they are the numbers of two GPUs of one model
            ("0/1"), each within `memory_bytes`; pictures are those of rows that are evaluated one
            by one, whose kernels may round otherwise than those for two. Steps of a single row are
            evaluated by the first place alone.

    Returns:
        An engine; use it as a context manager or call its `close`.

    Raises:
        ConfigError: an argument is invalid.
        BundleError: the bundle is missing, foreign, incomplete or altered.
        CheckpointError: a model is damaged, or of another architecture or noise schedule.
        AdapterError: a LoRA or hypernetwork is damaged, of another model, or not all of it can be
            applied.
        BackendUnavailableError: the backend cannot run the bundle or not on this machine.
        OutOfMemoryError: no image size of the bundle fits into the memory; the message has the
            figures.
    """
    if precision not in PRECISIONS:
        raise ConfigError.for_field("precision", precision, ", ".join(PRECISIONS))
    if threads is not None:
        threads = Integer(1, 4096)("threads", threads)
    opened = open_bundle(bundle)
    if not isinstance(low_memory, bool):
        raise ConfigError.for_field("low_memory", low_memory, "True or False")
    chosen = select_backend(backend, opened.manifest.target)
    merged = () if loras is None else FIELDS["loras"].checked(loras)
    terms = () if model is None else FIELDS["model"].checked(model)
    nets = () if hypernetworks is None else FIELDS["hypernetworks"].checked(hypernetworks)
    if vae_tiles not in VAE_TILES:
        raise ConfigError.for_field("vae_tiles", vae_tiles, ", ".join(VAE_TILES))
    if (bands := read_bands(vae_bands)) is None:
        raise ConfigError.for_field("vae_bands", vae_bands, "`vae_bands` of a result's provenance")
    if vae_tiles == "always" and opened.manifest.target != "native":
        raise ConfigError.for_field(
            "vae_tiles",
            vae_tiles,
            f"auto or never with target {opened.manifest.target}",
            "Only target native computes parts of a picture such that they fit exactly.",
        )
    if split_guidance is not None and not isinstance(split_guidance, str):
        raise ConfigError.for_field("split_guidance", split_guidance, "None or a text")
    options = SessionOptions(
        precision, threads, memory_bytes, low_memory, device, vae_tiles, bands, split_guidance
    )
    engine = Engine(opened, chosen, options)
    try:
        if merged or terms or nets:
            engine.set_weights(model=terms or None, loras=merged, hypernetworks=nets)
        if loras_folder is not None:
            engine.add_loras(loras_folder)
        if hypernetworks_folder is not None:
            engine.add_hypernetworks(hypernetworks_folder)
        if embeddings is not None:
            engine.add_embeddings(embeddings)
    except BaseException:
        engine.close()
        raise
    return engine
