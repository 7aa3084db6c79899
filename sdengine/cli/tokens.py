"""`sdengine tokens`: a prompt's tokens, weights and chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdengine.cli.embedding_options import (
    EMBEDDING_HELP,
    EMBEDDING_METAVAR,
    FOLDER_HELP,
    read_given,
)
from sdengine.cli.terminal import note, print_table, printable, say, say_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sdengine.prompt.plan import PromptPlan
    from sdengine.prompt.planner import PromptPlanner

_MAX_STRETCHES = 6


def tokens(
    prompt: Annotated[str, typer.Argument(help="As for `sdengine generate`.")],
    steps: Annotated[int, typer.Option(help="Sampler steps, for edits and alternation.")] = 20,
    emphasis: Annotated[
        str, typer.Option(help="What weights do: original, no_norm, none or literal.")
    ] = "original",
    bundle: Annotated[str, typer.Option(metavar="PATH", help="Bundle, or demo.")] = "demo",
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar=EMBEDDING_METAVAR, help=f"{EMBEDDING_HELP.capitalize()}."),
    ] = None,
    embeddings: Annotated[str | None, typer.Option(metavar="FOLDER", help=FOLDER_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a prompt's tokens, weights and chunks, and which text holds at which steps."""
    from sdengine.bundle.reader import open_bundle
    from sdengine.prompt.embedding_library import EmbeddingLibrary
    from sdengine.prompt.plan import PromptOptions
    from sdengine.prompt.planner import PromptPlanner
    from sdengine.request.request import FIELDS

    FIELDS["steps"].checked(steps)
    planner = PromptPlanner.from_bundle(open_bundle(bundle, verify="size"))
    library = EmbeddingLibrary(planner)
    library.add(*([embeddings] if embeddings else []))
    library.add(*read_given(embedding or []))
    options = PromptOptions(emphasis=emphasis)
    held, skipped = library.embeddings, library.skipped
    plan = planner.plan([prompt], [], steps, options, embeddings=held, skipped=skipped)
    texts = describe(planner, plan)
    if as_json:
        told = {"prompt": prompt, "steps": steps, "texts": texts}
        say_json({**told, "not_applied": plan.not_applied, "warnings": plan.skipped})
        return
    for text in texts:
        for shown in _shown(text, len(texts), steps):
            if isinstance(shown, str):
                say(shown)
            else:
                print_table(shown)
    for tag in plan.not_applied:
        say(f"not applied: {tag}")
    for line in plan.skipped:
        note(f"warning: {line}")


def describe(planner: PromptPlanner, plan: PromptPlan) -> list[dict[str, Any]]:
    """Return what `--json` prints about each text of the plan of one image.

    A text has `uses`, which say as which part, with which weight and at which steps (from 1) it
    counts, and by text encoder its chunks of tokens. A vector of an embedding has no id; its token
    is the embedding's name, its `vector` counts from 1.
    """
    uses: dict[int, dict[tuple[int, float], list[int]]] = {}
    for step, ((_, parts),) in enumerate(plan.steps, 1):
        for part, (row, weight) in enumerate(parts, 1):
            uses.setdefault(row, {}).setdefault((part, weight), []).append(step)
    return [
        {
            "text": text,
            "uses": [
                {"part": part, "weight": weight, "steps": numbers}
                for (part, weight), numbers in uses[row].items()
            ],
            "encoders": {name: _chunks(planner, plan, name, row) for name in plan.encoders},
        }
        for row, text in enumerate(plan.texts)
    ]


def _chunks(
    planner: PromptPlanner, plan: PromptPlan, encoder: str, row: int
) -> list[dict[str, Any]]:
    read, tokenizer = plan.encoders[encoder], planner.tokenizers[encoder]
    room = read.token_ids.shape[2] - 2
    vectors = [
        {"token": one.name, "vector": number}
        for one in plan.embeddings
        for number in range(1, one.num_vectors + 1)
    ]
    chunks = []
    for chunk, count in enumerate(read.num_tokens[row]):
        inner = slice(1, 1 + int(count))
        ids = read.token_ids[row, chunk, inner].tolist()
        weights = read.weights[row, chunk, inner].tolist()
        found = [
            {"token": tokenizer.token(token_id), "id": token_id, "weight": weight}
            if token_id >= 0
            else {**vectors[-1 - token_id], "id": None, "weight": weight}
            for token_id, weight in zip(ids, weights, strict=True)
        ]
        chunks.append({"room": room, "tokens": found})
    while len(chunks) > 1 and not chunks[-1]["tokens"]:
        chunks.pop()  # it only fills this text up to the longest one's length
    return chunks


def _shown(text: dict[str, Any], num_texts: int, steps: int) -> list[RenderableType]:
    by_encoder = text["encoders"]
    shown: list[RenderableType] = []
    if num_texts > 1:
        shown.append(f"text: {text['text']}")
        shown += [
            f"  part {use['part']}, weight {use['weight']:g}, {_stretches(use['steps'], steps)}"
            for use in text["uses"]
        ]
    for encoder, chunks in by_encoder.items():
        same_as_first = chunks == next(iter(by_encoder.values()))
        if encoder != next(iter(by_encoder)) and same_as_first:
            shown.append(f"{encoder}: the same tokens")
            continue
        shown += [_table(chunks), f"{encoder}: {_total(chunks)}"]
    return [*shown, ""]


def _table(chunks: Sequence[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("chunk", "position", "token", "id", "weight")
    for number, chunk in enumerate(chunks, 1):
        for position, token in enumerate(chunk["tokens"], 1):
            weight = f"{token['weight']:.4g}"
            shown, of = printable(token["token"]), token["id"]
            if of is None:
                of = f"vector {token['vector']}"
            cells = (str(number), str(position), shown, str(of), weight)
            table.add_row(*(Text(cell) for cell in cells), end_section=False)
        table.add_section()
    return table


def _total(chunks: Sequence[dict[str, Any]]) -> str:
    used = sum(len(chunk["tokens"]) for chunk in chunks)
    room = sum(chunk["room"] for chunk in chunks)
    return f"{used} of {room} tokens, {len(chunks)} chunk{'s' if len(chunks) > 1 else ''}"


def _stretches(numbers: Sequence[int], steps: int) -> str:
    """Write step numbers as stretches: `steps 1-4, 9`."""
    if len(numbers) == steps:
        return "every step"
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and stretches[-1][1] == number - 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    written = [f"{a}-{b}" if a < b else str(a) for a, b in stretches[:_MAX_STRETCHES]]
    more = ["..."] if len(stretches) > _MAX_STRETCHES else []
    return f"step{'s' if len(numbers) > 1 else ''} {', '.join(written + more)}"
