"""A bundle's own weights by their names in checkpoints, whatever its target keeps them in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from sdengine.bundle.ir_constants import ir_constants
from sdengine.errors import BundleError, ConfigError
from sdengine.storage.tensor_file import map_open_tensors

if TYPE_CHECKING:
    from sdengine.bundle.reader import Bundle

Array = NDArray[Any]
# Those of OpenVINO are its matrices and kernels: it renames vectors.
TARGETS = ("native", "torch", "openvino")
_PARAMETERS = (".weight", ".bias")


def require_named_weights(field: str, bundle: Bundle, targets: tuple[str, ...] = TARGETS) -> None:
    """Refuse a bundle whose weights cannot be changed when they are loaded.

    Raises:
        ConfigError: it is of another target.
    """
    target = bundle.manifest.target
    if target in targets:
        return
    hint = "Other targets hold compiled weights, which cannot be changed when they are loaded."
    if target.startswith("tensorrt"):
        hint = (
            "Its engines were not built to take other weights, which is slower and was not tested "
            "on a GPU: build a bundle of a checkpoint that they are merged into."
        )
    raise ConfigError.for_field(
        field, target, f"a bundle of target {', '.join(targets[:-1])} or {targets[-1]}", hint
    )


def own_weights(bundle: Bundle, network: str) -> dict[str, Array]:
    """Return a network's parameters, mapped; what else its files hold are constants of the graph.

    Raises:
        BundleError: a file is damaged.
    """
    ending = ".xml" if bundle.manifest.target == "openvino" else ".safetensors"
    files = [name for name in bundle.network(network).files if name.endswith(ending)]
    if len(files) != 1:
        raise BundleError(f"{bundle.root}: {network} has {len(files)} files of weights, not 1.")
    path = bundle.path(files[0])
    with bundle.open(files[0]) as file:
        if ending == ".xml":
            with bundle.open(files[0].removesuffix(ending) + ".bin") as weights:
                tensors = ir_constants(file, weights, str(path))
        else:
            tensors = map_open_tensors(file, path)
    return {name: tensor for name, tensor in tensors.items() if name.endswith(_PARAMETERS)}
