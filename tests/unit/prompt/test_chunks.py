"""How tokens are divided among chunks, and how chunks become the text encoder's sequences."""

from __future__ import annotations

import pytest

from sdengine.prompt.chunks import Chunk, pad_token_ids, pad_weights, split_chunks

COMMA = 7
ROOM = 75


def split(*sections: list[int]) -> list[list[int]]:
    weighted = [[(token_id, token_id / 2) for token_id in section] for section in sections]
    chunks = split_chunks(weighted, ROOM, COMMA)
    for chunk in chunks:
        assert chunk.weights == [token_id / 2 for token_id in chunk.token_ids]
    return [chunk.token_ids for chunk in chunks]


@pytest.mark.parametrize(
    ("count", "lengths"),
    [
        (0, [0]),
        (1, [1]),
        (74, [74]),
        (75, [75]),
        (76, [75, 1]),
        (150, [75, 75]),
        (151, [75, 75, 1]),
    ],
)
def test_borders(count: int, lengths: list[int]) -> None:
    chunks = split(list(range(100, 100 + count)))
    assert [len(chunk) for chunk in chunks] == lengths
    assert [token_id for chunk in chunks for token_id in chunk] == list(range(100, 100 + count))


@pytest.mark.parametrize(
    ("comma_at", "first"),
    [
        (74, 75),  # the last place: nothing follows it in its chunk
        (73, 74),
        (55, 56),  # 20 tokens back from the border
        (54, 75),  # too far back
        (0, 75),
    ],
)
def test_comma_ends_the_chunk(comma_at: int, first: int) -> None:
    tokens = list(range(100, 180))
    tokens[comma_at] = COMMA
    assert split(tokens) == [tokens[:first], tokens[first:]]


def test_last_comma_counts() -> None:
    tokens = list(range(100, 180))
    tokens[60] = tokens[70] = COMMA
    assert split(tokens) == [tokens[:71], tokens[71:]]


def test_no_back_off_where_it_is_not_needed() -> None:
    tokens = list(range(100, 175))
    tokens[70] = COMMA
    assert split(tokens) == [tokens]
    # A comma is itself what no longer fits: it begins the next chunk and ends nothing there.
    tokens = [*range(100, 175), COMMA, *range(200, 274), 300]
    tokens[60] = COMMA
    assert split(tokens) == [tokens[:75], tokens[75:150], tokens[150:]]


def test_carried_tokens_count_in_the_next_chunk() -> None:
    tokens = list(range(100, 300))
    tokens[60] = COMMA
    assert [len(chunk) for chunk in split(tokens)] == [61, 75, 64]


def test_sections() -> None:
    assert split([1], [2]) == [[1], [2]]
    assert split([1], []) == [[1]]
    assert split([], [1]) == [[], [1]]
    assert split([1], [], [2]) == [[1], [], [2]]
    assert split([], []) == [[]]
    assert split([*range(100, 176)], [1]) == [list(range(100, 175)), [175], [1]]


def test_without_comma_token() -> None:
    chunks = split_chunks([[(COMMA, 1.0)] * 3], 2, None)
    assert [len(chunk) for chunk in chunks] == [2, 1]


def test_padding() -> None:
    chunks = [Chunk([5, 6], [1.5, 1.0]), Chunk(), Chunk([1, 2, 3], [2.0, 2.0, 0.0])]
    assert pad_token_ids(chunks, 5, start=90, end=91, padding=0).tolist() == [
        [90, 5, 6, 91, 0],
        [90, 91, 0, 0, 0],
        [90, 1, 2, 3, 91],
    ]
    assert pad_weights(chunks, 5).tolist() == [
        [1, 1.5, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 2, 2, 0, 1],
    ]
