"""Fused operators as ONNX functions of standard ones: what each computes, in any runtime."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import parser

DOMAIN = "sdengine"
DOMAIN_VERSION = 1

# q, k, v: [B,S,heads,D], [B,T,heads,D]; the factor's root goes to each side, so that products of
# fp16 stay small.
_SCORES = """
    qt = Transpose <perm = [0, 2, 1, 3]> (q)
    kt = Transpose <perm = [0, 2, 3, 1]> (k)
    vt = Transpose <perm = [0, 2, 1, 3]> (v)
    factor = Constant <value_float: float = @scale> ()
    root = Sqrt (factor)
    root_like = CastLike (root, q)
    qs = Mul (qt, root_like)
    ks = Mul (kt, root_like)
    scores = MatMul (qs, ks)
"""
_WEIGHTED = """
    weights = Softmax <axis = -1> ({scores})
    mixed = MatMul (weights, vt)
    out = Transpose <perm = [0, 2, 1, 3]> (mixed)
"""
_MASK = """
    shape = Shape (scores)
    infinity = ConstantOfShape <value = float[1] {-inf}> (shape)
    one = Constant <value_int: int = 1> ()
    above = Trilu <upper = 1> (infinity, one)
    mask = CastLike (above, scores)
    seen = Add (scores, mask)
"""
# x: [B,C,...]; weight, bias: [C].
_GROUP_NORM = """
    groups = Constant <value_int: int = @num_groups> ()
    axis = Constant <value_ints = [0]> ()
    count = Unsqueeze (groups, axis)
    rest = Constant <value_ints = [-1]> ()
    grouped_shape = Concat <axis = 0> (axis, count, rest)
    grouped = Reshape (x, grouped_shape)
    ones_32 = ConstantOfShape <value = float[1] {1.0}> (count)
    ones = CastLike (ones_32, x)
    zeros_32 = ConstantOfShape <value = float[1] {0.0}> (count)
    zeros = CastLike (zeros_32, x)
    normed = InstanceNormalization <epsilon: float = @epsilon> (grouped, ones, zeros)
    shape = Shape (x)
    restored = Reshape (normed, shape)
    axes = Constant <value_ints = [1, 2]> ()
    scale = Unsqueeze (weight, axes)
    shift = Unsqueeze (bias, axes)
    scaled = Mul (restored, scale)
"""
_PLAIN = """
    out = Add (scaled, shift)
"""
_SILU = """
    y = Add (scaled, shift)
    gate = Sigmoid (y)
    out = Mul (y, gate)
"""
_ATTENTION_HEAD = "<scale>(q, k, v) => (out)"
_NORM_HEAD = "<num_groups, epsilon>(x, weight, bias) => (out)"
_BODIES = {
    "attention": (_ATTENTION_HEAD, _SCORES + _WEIGHTED.format(scores="scores")),
    "causal_attention": (_ATTENTION_HEAD, _SCORES + _MASK + _WEIGHTED.format(scores="seen")),
    "group_norm": (_NORM_HEAD, _GROUP_NORM + _PLAIN),
    "group_norm_silu": (_NORM_HEAD, _GROUP_NORM + _SILU),
}
OPERATORS = tuple(_BODIES)


def functions_for(names: Iterable[str], opset: int) -> list[onnx.FunctionProto]:
    """Return the functions of some of OPERATORS.

    Args:
        names: which.
        opset: version of the standard operators that the graph uses.
    """
    made = []
    for name in sorted(names):
        head, body = _BODIES[name]
        text = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n{name} {head}\n{{{body}}}'
        made.append(parser.parse_function(text))
    return made
