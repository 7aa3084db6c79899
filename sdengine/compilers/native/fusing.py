"""Fusion of drafts: biases, activations, gates and sums join the product before them."""

from __future__ import annotations

from collections.abc import Callable

from sdengine.backends.native.operations import PRODUCTS
from sdengine.compilers.native.drafts import Draft, Drafts

_QUICK_GELU = 1.702  # x * sigmoid(1.702 x); Source: "Gaussian Error Linear Units", section 2


def fuse_drafts(drafts: Drafts, row_inputs: set[str]) -> None:
    """Join what belongs together and put what is computed once an image first.

    Args:
        drafts: of all nodes; afterwards each is one step.
        row_inputs: inputs that have one row for each image.

    Raises:
        ExportError: a node is part of nothing that the native target computes.
    """
    rows = _rows(drafts, row_inputs)
    one_row = _one_row(drafts, rows)
    fusers: dict[str, Callable[[Drafts, Draft], None]] = {
        "bias": _bias,
        "product": _product,
        "activation": _activation,
        "sinusoid": _sinusoid,
        "select": _select,
        "conv": _conv,
    }
    for draft in list(drafts.all):
        if draft.kind == "add":
            _add(drafts, draft, rows, one_row)
        elif draft.kind in fusers:
            fusers[draft.kind](drafts, draft)
    drafts.all.sort(key=lambda draft: (draft.output not in rows, draft.place))


def _rows(drafts: Drafts, inputs: set[str]) -> set[str]:
    """Return the values that have one row for each image."""
    rows = set(inputs)
    for draft in drafts.all:
        if draft.inputs and draft.kind != "select" and rows.issuperset(draft.inputs.values()):
            rows.add(draft.output)
    return rows


def _one_row(drafts: Drafts, rows: set[str]) -> set[str]:
    """Return the values of one row an image, also those that follow from maps."""
    found = set(rows)
    for draft in drafts.all:
        asking = {draft.inputs["q"]} if draft.kind == "attention" else set(draft.inputs.values())
        if asking and draft.kind != "select" and found.issuperset(asking):
            found.add(draft.output)
    return found


def _open_product(drafts: Drafts, value: str, readers: int = 1) -> Draft | None:
    """Return the product that makes a value, if more can be done to its sums."""
    made = drafts.maker.get(value)
    if made is None or made.kind not in PRODUCTS or not drafts.only_reader(value, readers):
        return None
    return made if "residual" not in made.inputs else None


def _bias(drafts: Drafts, draft: Draft) -> None:
    made = _open_product(drafts, draft.inputs["x"])
    if made is None or "bias" in made.weights or "activation" in made.fields:
        drafts.refuse(draft, "a bias is added to what is no product")
    made.weights["bias"] = draft.weights["bias"]
    drafts.absorb(draft, made)


def _activate(drafts: Drafts, draft: Draft, value: str, activation: str) -> None:
    """Let a product activate its sums; where none makes the value, it is a step of its own."""
    made = _open_product(drafts, value)
    if made is not None and "activation" not in made.fields:
        made.fields["activation"] = activation
        drafts.absorb(draft, made)
        return
    draft.kind, draft.inputs = "activation", {"x": value}
    draft.fields = {"activation": activation}


def _activation(drafts: Drafts, draft: Draft) -> None:
    made = drafts.maker.get(draft.inputs["x"])
    if made is None or made.kind != "half":  # of a gate, the product with the other half decides
        _activate(drafts, draft, draft.inputs["x"], draft.fields["activation"])


def _product(drafts: Drafts, draft: Draft) -> None:
    a, b = draft.inputs["a"], draft.inputs["b"]
    for value, other in ((a, b), (b, a)):
        gate = drafts.maker.get(other)
        if gate is None or not drafts.only_reader(other):
            continue
        if gate.kind == "sigmoid" and _sigmoid_product(drafts, draft, value, gate):
            return
        if gate.kind == "activation" and _gated_product(drafts, draft, value, gate):
            return
        if gate.kind == "one_hot":
            return  # a selection, which takes it along
    drafts.refuse(draft, "it multiplies two maps")


def _sigmoid_product(drafts: Drafts, draft: Draft, value: str, sigmoid: Draft) -> bool:
    """x * sigmoid(x), or x * sigmoid(1.702 x)."""
    source = sigmoid.inputs["x"]
    scale = drafts.maker.get(source)
    if source == value:
        activation, parts = "silu", [sigmoid]
    elif (
        scale is not None
        and scale.kind == "scale"
        and scale.inputs["x"] == value
        and abs(scale.fields["factor"] - _QUICK_GELU) < 1e-6
        and drafts.only_reader(source)
    ):
        activation, parts = "quick_gelu", [sigmoid, scale]
    else:
        return False
    for part in parts:
        drafts.drop(part)
    _activate(drafts, draft, value, activation)
    return True


def _gated_product(drafts: Drafts, draft: Draft, value: str, gate: Draft) -> bool:
    """The first half of the channels by the activated second."""
    first, second = drafts.maker.get(value), drafts.maker.get(gate.inputs["x"])
    if first is None or second is None or {first.kind, second.kind} != {"half"}:
        return False
    source = first.inputs["x"]
    if (first.fields["index"], second.fields["index"], second.inputs["x"]) != (0, 1, source):
        return False
    made = _open_product(drafts, source, 2)
    if made is None or made.kind != "linear" or "activation" in made.fields:
        return False
    if gate.fields != {"activation": "gelu"}:
        return False
    for part in (first, second, gate):
        drafts.drop(part)
    made.fields |= {"channels": made.fields["channels"] // 2, "activation": "geglu"}
    drafts.absorb(draft, made)
    return True


def _sinusoid(drafts: Drafts, draft: Draft) -> None:
    """Cosines, then sines of one product with frequencies."""
    cos, sin = (drafts.maker[draft.inputs[role]] for role in ("000", "001"))
    angles = drafts.maker.get(cos.inputs["x"])
    if angles is None or angles.kind != "angles" or sin.inputs["x"] != angles.output:
        drafts.refuse(draft, "its cosines and sines are of different angles")
    frequencies = angles.fields["frequencies"]
    name = f"{angles.name}.frequencies"
    drafts.constants[name] = frequencies.astype("float32")
    draft.inputs = {"x": angles.inputs["x"]}
    draft.weights = {"frequencies": name}
    draft.fields = {"channels": len(frequencies)}
    for part in (cos, sin, angles):
        drafts.drop(part)
    drafts.readers[draft.inputs["x"]] += 1


def _select(drafts: Drafts, draft: Draft) -> None:
    """The sum over tokens of a map times zeros and a one."""
    product = drafts.maker.get(draft.inputs["x"])
    if product is None or product.kind != "product":
        drafts.refuse(draft, "it adds up tokens")
    for value, other in (("a", "b"), ("b", "a")):
        chosen = drafts.maker.get(product.inputs[other])
        if chosen is not None and chosen.kind == "one_hot":
            draft.inputs = {"x": product.inputs[value], "index": chosen.inputs["index"]}
            drafts.drop(product)
            drafts.drop(chosen)
            drafts.readers.update(draft.inputs.values())
            return
    drafts.refuse(draft, "it adds up tokens")


def _conv(drafts: Drafts, draft: Draft) -> None:
    """Read doubled pixels, or zeros behind the last ones."""
    made = drafts.maker.get(draft.inputs["x"])
    if made is None or made.kind not in ("double", "pad") or not drafts.only_reader(made.output):
        return
    if made.kind == "double":
        draft.fields["upsample"] = True
    elif draft.fields.pop("padding") == 0:
        draft.fields["padding_after"] = 1
    else:
        drafts.refuse(draft, "it pads twice")
    draft.inputs["x"] = made.inputs["x"]
    drafts.drop(made)
    drafts.readers[draft.inputs["x"]] += 1


def _add(drafts: Drafts, draft: Draft, rows: set[str], one_row: set[str]) -> None:
    """Let the product that makes one side add the other."""
    a, b = draft.inputs["a"], draft.inputs["b"]
    for value, other in ((a, b), (b, a)):
        made = _open_product(drafts, value)
        if made is None or other not in one_row or value in one_row or "activation" in made.fields:
            continue
        if other not in rows and drafts.maker[other].place > made.place:
            continue
        if "per_image" not in made.inputs and made.fields.get("activation") is None:
            made.inputs["per_image"] = other
            drafts.readers[other] += 1
            drafts.absorb(draft, made)
            return
    places = {value: drafts.maker[value].place for value in (a, b) if value in drafts.maker}
    for value, other in sorted(((a, b), (b, a)), key=lambda pair: -places.get(pair[0], -1)):
        made = _open_product(drafts, value)
        # What is added must be there before; inputs, which may be all zero, stay apart.
        if made is None or other not in places or places[other] > made.place or other in one_row:
            continue
        made.inputs["residual"] = other
        drafts.readers[other] += 1
        drafts.absorb(draft, made)
        return
    if a in one_row and b not in one_row:
        draft.inputs = {"a": b, "b": a}
