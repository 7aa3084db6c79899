"""Adapter library: the files that a bundle's requests gave, read and checked once."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sdengine.adapters.adapter import Adapter, cut_to_rank, read_adapter
from sdengine.adapters.file import alias_of
from sdengine.adapters.modules import Module, bundle_modules
from sdengine.adapters.named_files import NamedFiles
from sdengine.adapters.sources.model import Model, read_model
from sdengine.adapters.sources.own import Own, own_parameters
from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.errors import AdapterError, CheckpointError, ConfigError
from sdengine.inputs.hypernetworks import ENDINGS as HYPERNETWORK_ENDINGS
from sdengine.inputs.hypernetworks import Hypernetwork, HypernetworkUse, read_hypernetwork
from sdengine.inputs.loras import ENDINGS, Lora, find_lora, name_of, place_of
from sdengine.inputs.models import ModelTerm

if TYPE_CHECKING:
    from sdengine.bundle.reader import Bundle

# They are mapped: what is kept of one is a few kilobytes for each layer that it changes.
_MAX_KEPT = 100
_MAX_MODELS = 8
_MAX_HYPERNETWORKS = 4  # which are in memory, some 100 MB each
# What attention makes keys of.
_KEYS = re.compile(r".+\.attn[12]\.to_k")


class AdapterLibrary:
    """Make weight sets of what requests give. To be used by one thread at a time.

    Args:
        bundle: that the adapters must fit.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._modules: list[Module] | None = None
        self._kept: OrderedDict[str, Adapter] = OrderedDict()
        self._own: Own | None = None
        self.files = NamedFiles(
            "loras",
            ENDINGS,
            place_of,
            name_of,
            alias_of,
            lambda path: find_lora(path).sha256,
        )
        self._models: OrderedDict[tuple[tuple[str, float], ...], Model] = OrderedDict()
        self._hypernetworks: OrderedDict[str, Hypernetwork] = OrderedDict()
        self.hypernetwork_files = NamedFiles(
            "hypernetworks",
            HYPERNETWORK_ENDINGS,
            lambda path: path,
            lambda path: path.stem,
            lambda path: "",
            lambda path: HypernetworkUse.of(path, 1.0).sha256,
        )

    def weight_set(
        self,
        loras: Collection[Lora],
        model: Collection[ModelTerm] = (),
        hypernetworks: Collection[HypernetworkUse] = (),
    ) -> WeightSet:
        """Read what was not read yet, check all of it, and return the set; nothing is merged yet.

        Raises:
            ConfigError: the bundle is of a target whose weights cannot be changed, or only the
                record of a file is given and the file was never.
            AdapterError: a file cannot be applied; see `read_adapter` and `read_hypernetwork`.
            CheckpointError: a model does not fit; see `read_source`.
            BundleError: the bundle is damaged.
        """
        other = () if all(term.is_own for term in model) else model
        if not loras and not other and not hypernetworks:
            return PRISTINE
        if hypernetworks and self._bundle.manifest.target != "native":
            raise ConfigError.for_field(
                "hypernetworks",
                self._bundle.manifest.target,
                "a bundle of target native",
                "Their layers lie inside the U-Net, which other targets hold compiled.",
            )
        if self._modules is None and (loras or hypernetworks):
            self._modules = bundle_modules(self._bundle)
        return WeightSet(
            tuple((self._adapter(one), one.text, one.unet) for one in loras),
            self._model(tuple(other)) if other else None,
            tuple((self._hypernetwork(one), one.strength) for one in hypernetworks),
        )

    def _hypernetwork(self, use: HypernetworkUse) -> Hypernetwork:
        found = self._hypernetworks.get(use.sha256)
        if found is None:
            found = self._read_hypernetwork(use)
        self._hypernetworks[use.sha256] = found
        self._hypernetworks.move_to_end(use.sha256)
        while len(self._hypernetworks) > _MAX_HYPERNETWORKS:
            self._hypernetworks.popitem(last=False)
        return found

    def _read_hypernetwork(self, use: HypernetworkUse) -> Hypernetwork:
        path = use.path or self.hypernetwork_files.of_hash(use.sha256)
        if path is None:
            raise ConfigError(
                f"hypernetworks: {use.name!r}, with SHA-256 {use.sha256}, is only known by its "
                "record. Give its file again, --hypernetwork FILE in the command, hypernetworks in "
                "Python, or a folder that has it."
            )
        try:
            found = read_hypernetwork(path)
        except CheckpointError as error:
            raise AdapterError(f"hypernetwork {error}") from None
        if found.sha256 != use.sha256:
            raise AdapterError(
                f"hypernetwork {str(path)!r} was overwritten after it was checked. Give it again."
            )
        assert self._modules is not None
        require_widths(path, found, self._modules)
        return found

    def _model(self, terms: tuple[ModelTerm, ...]) -> Model:
        key = tuple((term.sha256, term.share) for term in terms)
        model = self._models.get(key)
        if model is not None:
            try:
                model.require_unchanged()
            except CheckpointError:
                model = None
        if model is None:
            if self._own is None:
                self._own = own_parameters(self._bundle)
            model = read_model(terms, self._own)
        self._models[key] = model
        self._models.move_to_end(key)
        while len(self._models) > _MAX_MODELS:
            self._models.popitem(last=False)
        return model

    def _adapter(self, lora: Lora) -> Adapter:
        adapter = self._whole(lora)
        return adapter if lora.rank is None else cut_to_rank(adapter, lora.rank)

    def _whole(self, lora: Lora) -> Adapter:
        adapter = self._kept.get(lora.sha256)
        if adapter is None or adapter.holder.is_overwritten():
            adapter = self._read(lora)
        self._kept[lora.sha256] = adapter
        self._kept.move_to_end(lora.sha256)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return adapter

    def _read(self, lora: Lora) -> Adapter:
        path = lora.path or self.files.of_hash(lora.sha256)
        if path is None:
            raise ConfigError(
                f"loras: {lora.name!r}, with SHA-256 {lora.sha256}, is only known by its record. "
                "Give its file again, --lora FILE in the command, loras in Python, or a folder "
                "that has it."
            )
        assert self._modules is not None
        if find_lora(path).sha256 == lora.sha256:
            adapter = read_adapter(path, self._modules)
            if adapter.sha256 == lora.sha256:
                return adapter
        raise AdapterError(
            f"adapter {str(path)!r} was overwritten after it was checked. Give it again."
        )


def require_widths(path: Path, found: Hypernetwork, modules: Iterable[Module]) -> None:
    """Refuse a hypernetwork of another family, of which some or all would have no effect.

    One that has networks for all widths of this model may have others beside.

    Args:
        path: of its file.
        found: what is in it.
        modules: of the bundle.

    Raises:
        AdapterError: it is one.
    """
    own = {
        module.weight[1]
        for module in modules
        if module.network == "unet" and module.weight and _KEYS.fullmatch(module.path)
    }
    foreign = found.networks.keys() - own
    if foreign and not own <= found.networks.keys():
        had, wanted = (", ".join(map(str, sorted(one))) for one in (found.networks, own))
        raise AdapterError(
            f"hypernetwork {str(path)!r} has networks for the widths {had}; this model's attention "
            f"reads {wanted}. It was made for another family: Stable Diffusion 1 reads texts of "
            "768, 2 of 1024, XL of 2048."
        )
