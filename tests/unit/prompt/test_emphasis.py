"""Emphasis: what each documented form of the syntax means, and what malformed text does."""

from __future__ import annotations

from typing import Any

import pytest

from sdengine.errors import ConfigError
from sdengine.prompt.emphasis import parse_emphasis, parse_unweighted

UP, DOWN = 1.1, 1 / 1.1


def parsed(text: str) -> list[list[tuple[str, Any]]]:
    sections = parse_emphasis(text)
    return [[(run.text, pytest.approx(run.weight)) for run in section] for section in sections]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a word", [("a word", 1)]),
        ("a (word)", [("a ", 1), ("word", UP)]),
        ("a ((word))", [("a ", 1), ("word", UP * UP)]),
        ("a [word]", [("a ", 1), ("word", DOWN)]),
        ("a [[word]]", [("a ", 1), ("word", DOWN * DOWN)]),
        ("a (word:1.5)", [("a ", 1), ("word", 1.5)]),
        ("a (word:0.25)", [("a ", 1), ("word", 0.25)]),
        ("(a:.5)(b:+2.)(c:-1)(d: 3 )", [("a", 0.5), ("b", 2), ("c", -1), ("d", 3)]),
        ("(a (b:1.5) c:2)", [("a ", 2), ("b", 3), (" c", 2)]),
        ("((a [b])) (c:3)", [("a ", UP * UP), ("b", UP), (" ", 1), ("c", 3)]),
        ("(a [b) c]", [("a ", UP), ("b", 1), (" c", DOWN)]),
        ("(a)(b)", [("ab", UP)]),
        ("a()b[]", [("ab", 1)]),
    ],
)
def test_documented_forms(text: str, expected: list[tuple[str, float]]) -> None:
    assert parsed(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"a \(word\)", [("a (word)", 1)]),
        (r"\[a\] \\", [("[a] \\", 1)]),
        (r"(smile \:\) :1.2)", [("smile :) ", 1.2)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        ("back\\slash\\", [("backslash", 1)]),
        (r"\\(a)", [("\\", 1), ("a", UP)]),
    ],
)
def test_escapes(text: str, expected: list[tuple[str, float]]) -> None:
    assert parsed(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (b c", [("a ", 1), ("b c", UP)]),
        ("a [b (c", [("a ", 1), ("b ", DOWN), ("c", DOWN * UP)]),
        ("a) b] c", [("a) b] c", 1)]),
        ("a:1.5) b", [("a:1.5) b", 1)]),
        ("16:9, :, a::b", [("16:9, :, a::b", 1)]),
        ("(a:b)", [("a:b", UP)]),
        ("(a:1.5 b)", [("a:1.5 b", UP)]),
        ("[a:1.5]", [("a:1.5", DOWN)]),
        ("(a:1.2.3)", [("a:1.2.3", UP)]),
        ("(a:.)", [("a:.", UP)]),
        ("(a:nan)", [("a:nan", UP)]),
        ("(a:1e999)", [("a:1e999", UP)]),
        ("a:1.2.3) b", [("a:1.2.3) b", 1)]),
    ],
)
def test_malformed_is_text(text: str, expected: list[tuple[str, float]]) -> None:
    assert parsed(text) == [expected]


def test_sections() -> None:
    assert parsed("a BREAK b") == [[("a ", 1)], [(" b", 1)]]
    assert parsed("(a BREAK [b]:2)") == [[("a ", 2)], [(" ", 2), ("b", 2 * DOWN)]]
    assert parsed("BREAK") == [[], []]
    assert parsed("a\nBREAK,BREAK") == [[("a\n", 1)], [(",", 1)], []]
    assert parsed("BREAKS xBREAK break BREAK_") == [[("BREAKS xBREAK break BREAK_", 1)]]


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("(tree:100.5)", "100.5"),
        ("(tree:-101)", "-101"),
        ("(" * 49 + "tree", "106.7"),
        ("(" * 20_000 + "tree", "inf"),
        ("(tree:" + "9" * 400 + ")", "inf"),
        ("(" * 20_000 + "(tree:0)", "nan"),
    ],
)
def test_weights_out_of_range(text: str, weight: str) -> None:
    with pytest.raises(ConfigError, match=f"negative_prompt: the weight of 'tree' is {weight}"):
        parse_emphasis(text, "negative_prompt")


def test_largest_weights() -> None:
    assert parsed("(a:100)(b:-100)(c:0)") == [[("a", 100), ("b", -100), ("c", 0)]]
    parse_emphasis("(:999)")  # no text has that weight


def test_unweighted() -> None:
    runs = parse_unweighted("a (b:1e5) (c:1e5")
    assert all(run.weight == 1 for section in runs for run in section)
    sections = parse_unweighted(r"foo(bar:500) \(x\) BREAK y")
    assert [[run.text for run in section] for section in sections] == [
        ["foo", "bar", " (x) "],
        [" y"],
    ]
