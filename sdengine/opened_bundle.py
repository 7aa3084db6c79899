"""Opened bundle: its networks, and what requests have of it where they do not say otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sdengine.backends.base import DEFAULTS, Backend, SessionOptions
from sdengine.bundle.reader import Bundle
from sdengine.images.latents import Latents
from sdengine.images.provenance import Provenance, processor
from sdengine.inputs.embeddings import Embedding
from sdengine.inputs.given_files import ByFile
from sdengine.inputs.hypernetworks import HypernetworkUse
from sdengine.inputs.loras import Lora, Strength
from sdengine.inputs.models import Given, ModelTerm
from sdengine.pipeline.codec import (
    decode_latents,
    encode_pixels,
    latents_size,
    own_pixels,
    padded_size,
)
from sdengine.pipeline.loaded_networks import Networks, WeightedNetworks
from sdengine.pipeline.pipeline import Pipeline
from sdengine.pipeline.planner import Planner
from sdengine.pipeline.turns import Turns
from sdengine.prompt.planner import usual_clip_skip
from sdengine.request.request import FIELDS
from sdengine.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OpenedBundle:
    """A bundle with all that is kept of it between requests.

    Its networks, the turns in which they are used, and what requests get that do not say it
    themselves: textual inversions, LoRAs and weights.

    Args:
        bundle: open.
        backend: that runs it.
        options: how.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, options: SessionOptions = DEFAULTS
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.session = backend.open(bundle, options)
        self.precision = self.session.precision
        self.threads = options.threads
        self.low_memory = options.low_memory
        self._networks = Networks(bundle, self.session)
        source = bundle.manifest.source
        self.provenance = Provenance(
            backend=backend.name,
            precision=self.precision,
            threads=self.threads,
            version=__version__,
            processor=processor(),
            model=source.name,
            model_hash=source.sha256,
            bundle_hash=bundle.sha256,
            usual_clip_skip=usual_clip_skip(bundle.manifest.architecture),
        )
        self._planner = Planner(bundle, self._networks, self.session.max_chunks)
        self._pipeline = Pipeline(
            bundle, self._networks, self._planner, self.provenance, self.low_memory
        )
        self._turns = Turns()

    def __enter__(self) -> OpenedBundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for requests that have begun and free the networks; a second call does nothing.

        Called by `progress`, it returns at once, and the networks are freed after the request.
        """
        self._turns.at_end(self._networks.close)

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """The textual inversions that prompts may name, sorted by name."""
        return self._planner.library.resolve(None, self._planner.weights.embeddings())

    @property
    def skipped_embeddings(self) -> Mapping[str, str]:
        """Files of folders given to `add_embeddings` that are of no use, and why."""
        return {one.file: one.reason for one in self._planner.library.skipped}

    @property
    def lora_names(self) -> tuple[str, ...]:
        """The names of LoRAs that prompts may have in tags, sorted."""
        return self._planner.weights.names

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has as it is written, without start, end and padding."""
        return len(next(iter(self._planner.conditioner.planner.tokenizers.values())).encode(text))

    def add_loras(self, *loras: str | os.PathLike[str]) -> None:
        """Let prompts name LoRAs in tags, as web UIs do: `<lora:name:0.8>`.

        One number is the strength in all networks; two are that in the text encoders and that in
        the U-Net, and a third cuts it to a rank (its first rows, as the web UI does), also written
        `te=`, `unet=`, `dyn=`. A name is a file's without its ending, or what its trainer called
        it. A tag comes on top of what `loras` gives, in place of it for the same file. A request
        that names what is not there is told so by its result, and made without.

        Args:
            loras: files, or folders, which are searched with all folders in them.

        Raises:
            ConfigError: a path leads to neither.
        """
        self._planner.weights.add_files(*loras)

    def add_hypernetworks(self, *hypernetworks: str | os.PathLike[str]) -> None:
        """Let prompts name hypernetworks in tags, as web UIs do: `<hypernet:name:0.8>`.

        As for `add_loras`: a tag counts in place of a strength that is given beside it.

        Args:
            hypernetworks: files, or folders, which are searched with all folders in them.

        Raises:
            ConfigError: a path leads to neither.
        """
        self._planner.weights.add_hypernetworks(*hypernetworks)

    def knows(self, use: Lora | HypernetworkUse) -> bool:
        """Say whether a file of a recorded request can be had again by its hash."""
        return self._planner.weights.knows(use)

    @property
    def model(self) -> tuple[ModelTerm, ...]:
        """What takes the place of the bundle's weights for requests that give no `model`."""
        return self._planner.weights.model

    def add_embeddings(self, *embeddings: str | os.PathLike[str] | Embedding) -> None:
        """Let prompts name textual inversions; nothing is built or loaded again.

        A request that has `embeddings` itself sees those alone. A name that was there already means
        the new one from now on.

        Args:
            embeddings: paths of files, which prompts call by their names without the ending; paths
                of folders, which are read with all folders in them; or what `read_embeddings`
                returns, which can give a file another name. Files of folders that are damaged, for
                other models, or of a name that is taken are skipped, see `skipped_embeddings`; a
                prompt that names one gives a warning.

        Raises:
            ConfigError: a file cannot be read, or is not for this bundle's text encoders.
        """
        self._planner.library.add(*embeddings)

    @property
    def loras(self) -> tuple[Lora, ...]:
        """What is merged into the weights for requests that give no `loras`."""
        return self._planner.weights.loras

    @property
    def hypernetworks(self) -> tuple[HypernetworkUse, ...]:
        """What changes the U-Net's attention for requests that give no `hypernetworks`."""
        return self._planner.weights.hypernetworks

    def set_weights(
        self,
        *,
        model: Given | tuple[ModelTerm, ...] | None = None,
        loras: ByFile[Strength] | tuple[Lora, ...] | None = None,
        hypernetworks: ByFile[float] | tuple[HypernetworkUse, ...] | None = None,
    ) -> None:
        """Set what requests compute with that do not say it themselves; nothing is built again.

        What is not given is the bundle's own from now on, as if it had never been set. Requests
        that have begun, and those that `stream` goes on with, finish on the weights that they began
        with.

        Args:
            model: a checkpoint of the bundle's architecture, a file or a folder, whose weights take
                the place of the bundle's (U-Net, text encoders with their token tables, VAE; what
                it lacks stays); or several with their shares, which make 1: {a: 0.7, b: 0.3} is a
                weighted sum, {a: 1, b: 0.5, c: -0.5} adds half the difference between b and c, and
                "bundle" is the bundle itself. A bundle for inpainting or depth takes checkpoints
                for text too, and keeps its own channels for what they do not read.
            loras: files of LoRAs and their kin, or folders that PEFT or diffusers wrote, with a
                strength for each (0.8), or one for the text encoders and one for the U-Net
                ((0.5, 0.8)), from -100 to 100; or what `loras` was. They are merged into the
                weights of a bundle of target native, always anew into the bundle's own; their
                order changes nothing. Prompts may name textual inversions inside them.
            hypernetworks: files of hypernetworks as web UIs train them, with a strength for each,
                from -100 to 100, in the order in which they are applied; or what `hypernetworks`
                was. For a bundle of target native.

        Raises:
            ConfigError: an argument is invalid, or the bundle is of another target.
            CheckpointError: a model is damaged, or of another architecture or noise schedule.
            AdapterError: a LoRA or hypernetwork is damaged, of another model, or not all of it can
                be applied. The weights are as they were.
        """
        found = () if loras is None else FIELDS["loras"].checked(loras)
        terms = () if model is None else FIELDS["model"].checked(model)
        nets = () if hypernetworks is None else FIELDS["hypernetworks"].checked(hypernetworks)
        self._planner.weights.set_defaults(found, terms, nets)

    def encode(self, image: Any) -> Latents:
        """Return the mean latents of a picture, of any size that the bundle runs when padded.

        With `Latents.save` and `decode` the VAE is a codec of half a bit a pixel.

        Args:
            image: a path, a PIL image, an array or a file's bytes; transparent pixels show white.

        Raises:
            ConfigError: it is no picture, or the bundle has no encoder.
            UnsupportedShapeError, OutOfMemoryError, NonFiniteError: as for `run`.
        """
        pixels = own_pixels(image)
        networks, model_hash = self._vae()
        size = padded_size(pixels.shape[1], pixels.shape[0], networks)
        self.session.budget.check(*size)
        with self._turns.take():
            self._networks.require_own()
            return encode_pixels(pixels, size, networks, model_hash)

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        """Return the picture [h,w,3] uint8 of latents that `encode` made with the same model.

        Raises:
            ConfigError: another model's VAE made them.
            UnsupportedShapeError, OutOfMemoryError, NonFiniteError: as for `run`.
        """
        networks, model_hash = self._vae()
        size = latents_size(latents, networks, model_hash)
        self.session.budget.check(*size)
        with self._turns.take():
            self._networks.require_own()
            return decode_latents(latents, networks)

    def _vae(self) -> tuple[WeightedNetworks, str]:
        """Return the networks of requests that give no weights, and whose autoencoder they have."""
        weights = self._planner.weights.defaults()
        model_hash = weights.identity("vae_decoder") or self.provenance.model_hash
        return WeightedNetworks(self._networks, weights), model_hash

    def forget_prompts(self) -> None:
        """Have the text encoders run again for prompts of earlier requests, as for measurements.

        What a prompt became is otherwise kept for a while, and used by requests that have the same.
        """
        with self._turns.take():
            self._pipeline.forget_prompts()
