"""Edits, alternation and AND: which text holds at which step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdengine.errors import ConfigError
from sdengine.prompt.editing import EditedText, Part, split_parts


def by_step(text: str, steps: int) -> list[str]:
    edited = EditedText(text, steps)
    return [edited.at(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("a [cat:dog:0.5] b", 4, ["a cat b"] * 2 + ["a dog b"] * 2),
        ("a [cat:dog:3] b", 4, ["a cat b"] * 3 + ["a dog b"]),
        ("a[dog:1]", 3, ["a", "adog", "adog"]),
        ("a[dog::1]", 3, ["adog", "a", "a"]),
        ("[cat:dog:.5]", 5, ["cat"] * 2 + ["dog"] * 3),
        ("[cat:dog:1.0]", 3, ["cat"] * 3),
        ("[cat:dog:1]", 3, ["cat"] + ["dog"] * 2),
        ("[cat:dog:0]", 2, ["dog"] * 2),
        ("[cat:dog: +2 ]", 3, ["cat", "cat", "dog"]),
        ("[cat:dog:-3]", 2, ["dog"] * 2),
        ("[cat:dog:9]", 2, ["cat"] * 2),
        ("[cat:dog:1e999]", 2, ["cat"] * 2),
        ("[cat:dog:1e-1]", 20, ["cat"] * 2 + ["dog"] * 18),
        ("[:dog:1]", 2, ["", "dog"]),
        ("[a|b|c]", 5, ["a", "b", "c", "a", "b"]),
        ("[fe|]male", 3, ["female", "male", "female"]),
        ("[|a]", 2, ["", "a"]),
        ("[a|b][c|d|e]", 4, ["ac", "bd", "ae", "bc"]),
    ],
)
def test_documented_forms(text: str, steps: int, expected: list[str]) -> None:
    assert by_step(text, steps) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[a|b]:c:2]", ["a", "b", "c", "c"]),
        ("[a:[b:c:3]:1]", ["a", "b", "b", "c"]),
        ("[[[a:1]:2]:3]", ["", "", "", "a"]),
        ("[x|[y|z]]", ["x", "z", "x", "z"]),
        ("([a:b:2]:1.3)", ["(a:1.3)", "(a:1.3)", "(b:1.3)", "(b:1.3)"]),
        ("[(a:1.3):[b]:2]", ["(a:1.3)", "(a:1.3)", "[b]", "[b]"]),
        ("[(a|b:2):c:2]", ["(a|b:2)", "(a|b:2)", "c", "c"]),
        ("[[a:b:1]:[c|d]:2]", ["a", "b", "c", "d"]),
        (r"[a\:x:b\]:2]", [r"a\:x", r"a\:x", r"b\]", r"b\]"]),
    ],
)
def test_nested(text: str, expected: list[str]) -> None:
    assert by_step(text, 4) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "[less]",
        "[a:b]",
        "[a:b:c:2]",
        "[a:b:x]",
        "[a:b:nan]",
        "[a:b:1_0]",
        "[a:b:" + "0" * 70 + "1]",
        "(a:b:0.5)",
        "(a|b)",
        "a|b:0.5",
        r"\[a:b:0.5\]",
        r"[a:b:0.5\]",
        "[a:b:0.5",
        "a:b:0.5]",
        "[a (b:c:0.5]",
        "[a) b:c:0.5]",
        "[a:(b [c):0.5]",
    ],
)
def test_anything_else_is_left_alone(text: str) -> None:
    assert EditedText(text, 2).is_constant
    assert by_step(text, 2) == [text] * 2


WORDS = st.sampled_from(["a", "b ", "(c)", "[d]", "(e:1.2)", r"\[", r"\)", ""])
WHEN = st.sampled_from([(number, str(number)) for number in range(6)]) | st.sampled_from(
    [(2, "0.5"), (1, ".25"), (4, "1.0")]
)


def alternation(options: list[list[str]]) -> list[str]:
    return [options[step % len(options)][step] for step in range(4)]


# Pairs of a text and what it gives at each of four steps.
EXPRESSIONS: st.SearchStrategy[tuple[str, list[str]]] = st.recursive(
    WORDS.map(lambda word: (word, [word] * 4)),
    lambda inner: (
        st.lists(inner, max_size=3).map(
            lambda parts: (
                "".join(text for text, _ in parts),
                ["".join(given[step] for _, given in parts) for step in range(4)],
            )
        )
        | st.tuples(inner, inner, WHEN).map(
            lambda edit: (
                f"[{edit[0][0]}:{edit[1][0]}:{edit[2][1]}]",
                [edit[int(step >= edit[2][0])][1][step] for step in range(4)],
            )
        )
        | st.lists(inner, min_size=2, max_size=3).map(
            lambda options: (
                f"[{'|'.join(text for text, _ in options)}]",
                alternation([given for _, given in options]),
            )
        )
    ),
    max_leaves=12,
)


@given(expression=EXPRESSIONS)
def test_any_nesting(expression: tuple[str, list[str]]) -> None:
    text, expected = expression
    assert by_step(text, 4) == expected


def test_too_many_edits() -> None:
    assert EditedText("[a|b]" * 500, 2).at(1) == "b" * 500
    with pytest.raises(ConfigError, match="501 edits and alternations; at most 500"):
        EditedText("[a|b]" * 501, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a cat, 16:9", [("a cat, 16:9", 1)]),
        ("a AND b", [("a", 1), ("b", 1)]),
        ("a :1.2 AND b AND c: -2.5 ", [("a", 1.2), ("b", 1), ("c", -2.5)]),
        ("a AND b:.5\nAND\tc:2.", [("a", 1), ("b", 0.5), ("c", 2)]),
        ("a AND", [("a", 1), ("", 1)]),
        ("a AND (b:1.2)", [("a", 1), ("(b:1.2)", 1)]),
        ("a:x AND b:1.2.3 AND c:", [("a:x", 1), ("b:1.2.3", 1), ("c:", 1)]),
        ("[a AND b:c:2]", [("[a", 1), ("b:c:2]", 1)]),
        ("SAND ANDY and", [("SAND ANDY and", 1)]),
    ],
)
def test_parts(text: str, expected: list[tuple[str, float]]) -> None:
    assert split_parts(text) == [Part(*part) for part in expected]


def test_part_limits() -> None:
    assert len(split_parts("AND".join([" a "] * 16))) == 16
    with pytest.raises(ConfigError, match="17 parts joined by AND; at most 16"):
        split_parts("AND".join([" a "] * 17))
    for weight in ("100.1", "-101", "9" * 400):
        with pytest.raises(ConfigError, match="weight of a part"):
            split_parts(f"a AND b:{weight}")
