"""Parts of an adapter's keys: the stem that names a module, and what the tensor is of its change.

Source: the keys that kohya's sd-scripts, LyCORIS, diffusers and PEFT write.
"""

from __future__ import annotations

import re

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
)  # fmt: skip
_PARTS = {
    **{
        f"{before}{way}.weight": way
        for before in ("lora_", "lora.", "lora_linear_layer.", "")
        for way in ("down", "up")
    },
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_B.bias": "up_bias",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "ia3_l": "ia3_l",
    "weight": "weight",
    **{name: name for name in (*_LOHA, *_LOKR)},
    **{name: name for name in ("alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm")},
    "on_input": "on_input",
}
# What is known and not applied.
REFUSED = {
    "GLoRA": re.compile(r"[ab][12]\.weight"),
    "OFT": re.compile(r"oft_(blocks|diag)|oft_R(\..+)?"),
    "BOFT": re.compile(r"boft_[RsP](\..+)?|boft_blocks"),
    "VeRA": re.compile(r"vera_(lambda_[bdAB]|[AB])(\..+)?"),
    "LoRA of an embedding": re.compile(r"lora_embedding_[AB](\..+)?"),
    "a sparse bias": re.compile(r"bias_(indices|values|size)"),
}
# PEFT puts an adapter's name behind what it is a part of.
_NAMED = re.compile(
    r"(lora_[AB]|lora_magnitude_vector)\.(?!weight$|bias$)[^.]{1,80}(\.weight|\.bias|)"
)


def split_key(key: str) -> tuple[str, str] | None:
    """Return a key's stem and part; None where it ends like none."""
    for place, ending in _endings(key):
        if named := _NAMED.fullmatch(ending):
            ending = named[1] + named[2]
        if ending in _PARTS:
            return key[:place], _PARTS[ending]
    return None


def refused_kind(key: str) -> str | None:
    """Return the name of the kind that a key belongs to, if it is known and not applied."""
    for _, ending in _endings(key):
        for kind, pattern in REFUSED.items():
            if pattern.fullmatch(ending):
                return kind
    return None


def _endings(key: str) -> list[tuple[int, str]]:
    """Return the places of the last dots of a key and what follows each, the longest first."""
    places = [match.start() for match in re.finditer(r"\.", key[:1000])][-4:]
    return [(place, key[place + 1 :]) for place in places]
