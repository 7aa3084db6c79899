"""Training in the report: what the demo model was taught, runs that were killed, steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sdengine.benchmarks.markdown import folded, table
from sdengine.training.scenes import TAUGHT_COLOR

Record = Mapping[str, Any]
Parts = Mapping[str, Record]
_RANK = 16  # of LoRAs that say no other


def training(record: Record, edges: Record) -> str:
    """Return the tables of the parts that there are.

    Args:
        record: of benchmarks/training.py.
        edges: of the ControlNet that ships with the demo model.
    """
    parts: Parts = record["parts"]
    texts = [
        "The demo model, taught by the functions behind `sdengine train` on one thread, at 128 "
        "pixels. Every picture is of a composition that was held out of all trainings, made by "
        "the engine in bf16 with dpmpp_2m, karras, 25 steps, guidance 2 (ControlNets: as in "
        "[variants](#variants-of-the-demo-model)), and scored by measurement as in "
        "[prompt following](#prompt-following). Seconds are the processor's, measurements "
        "included."
    ]
    tables: tuple[tuple[str, Callable[[Parts], str]], ...] = (
        ("word", _words),
        ("subject", _subject),
        ("style", _styles),
        ("edges", lambda own: _edges(own["edges"], edges)),
        ("resume", _resumed),
        ("processes", _processes),
        ("steps", _steps),
    )
    for name, made in tables:
        own = {part: found for part, found in parts.items() if part.split("-")[0] == name}
        if own:
            texts.append(made(own))
    return "\n\n".join(texts)


def _words(parts: Parts) -> str:
    rows = []
    for name, part in parts.items():
        _, kind, thing = name.split("-")
        found = part["found"]
        known = found.get("known_as_new")
        rows.append([
            f"a new {'colour' if thing == TAUGHT_COLOR else 'shape'}, {thing}", kind, _how(part),
            str(part["pictures"]), str(part["count"]), f"{found['right']:.0f}",
            f"{found['one_object']:.0f}",
            "to the bit" if found["others_unchanged"] else "no",
            "" if known is None else f"{known:.0f}", str(part["cpu_seconds"]),
        ])  # fmt: skip
    heading = ["taught", "as", "steps x batch, rate", "learned from", "measured on", "right, %",
               "of one object, %", "other prompts unchanged", "known taken for new, %",
               "seconds"]  # fmt: skip
    return "\n\n".join([
        "**Words.** Indigo lies halfway between blue and purple; a pot is a trapezoid that is wide "
        "at its top. The model knows neither. "
        "Captions of the pictures that it learns from say `zorblax`; a picture is right if all but "
        "sizes is. An embedding is one vector that begins "
        "as the mean of `blue purple`, or of `square heart`. Other prompts are ten without the "
        "word, made with the file on the engine: the embedding given, the LoRA at strength 0. "
        "What is taught varies by more than what is known, so the scorer lets it: an object's "
        "colour is the mean of its pixels, which is indigo from about a fifth to four fifths of "
        "the way from blue to purple, and a shape is a pot if it overlaps with one nearly as much "
        "as with its nearest other; the column says how much of what is known, as the untouched "
        "model shows it, is then taken for new.",
        table(heading, rows, texts=3),
        _sheets(parts, "above untrained"),
    ])  # fmt: skip


def _subject(parts: Parts) -> str:
    part = parts["subject"]
    found = part["found"]
    before = found["before"]
    rows = [["untouched", "", *_elsewhere(before, before)]]
    for name, shown in (("with_prior", "prior preserved"), ("without", "without")):
        own = found[name]
        cells = _elsewhere(own["elsewhere"], before)
        rows.append([shown, f"{own['subject_right']:.0f}", *cells])
    return "\n\n".join([
        "**A subject.** A circle that is red on its left and yellow on its right, by DreamBooth "
        f"({_how(part)}) from {part['pictures']} pictures of `sks circle`; prior: 300 "
        "pictures with captions like those that the model learned, made by the untouched model "
        "(`--class-folder`). Elsewhere is prompt following without it, "
        f"{part['count']} prompts of one object and as many of two.",
        table(["", "subject right, %", "one object, %", "two objects, %", "lost, points"], rows),
        _sheets(parts, "the subject and other prompts, with prior, then without"),
    ])  # fmt: skip


def _elsewhere(found: Record, before: Record) -> list[str]:
    mean, old = (sum(one.values()) / len(one) for one in (found, before))
    return [*(f"{value:.0f}" for value in found.values()), f"{old - mean:.1f}"]


def _styles(parts: Parts) -> str:
    first = next(iter(parts.values()))["found"]
    rows = [
        [f"{name.split('-')[1]}, {_how(part)}",
         *(f"{100 * share:.2f}" for share in part["found"]["edge_share"].values()),
         "rises" if part["found"]["monotone"] else "does not always rise"]
        for name, part in parts.items()
    ]  # fmt: skip
    strengths = [f"at {strength}" for strength in first["edge_share"]]
    drawn = 100 * first["drawn"]
    return "\n\n".join([
        "**A style.** Outlined drawings, whose captions do not say so; the share of pixels that "
        f"are edges, in percent, by the strength of the file (drawn scenes: {drawn:.2f}). Strength "
        "0 gives the untouched model's pictures to the bit.",
        table(["", *strengths, ""], rows),
        _sheets(parts, "rows by strength"),
    ])  # fmt: skip


def _edges(part: Record, shipped: Record) -> str:
    rows = [
        [side, scale, *(f"{value:.3f}" for value in row.values())]
        for side, record in (("trained here", part), ("`demo-edges`", shipped))
        for scale, row in record["found"].items()
    ]
    return "\n\n".join([
        f"**Edges.** A ControlNet from `sdengine train controlnet`, {_how(part)}, "
        f"{part['pictures']} pictures, half of the prompts left out; {part['count']} scenes, "
        f"beside the one that ships with the demo model ({shipped['scenes']}), which was trained "
        "on scenes drawn anew.",
        table(["", "scale", "F1 of edges", "one object", "two objects"], rows, texts=2),
        _sheets({"edges": part}, "hints, then scales"),
    ])  # fmt: skip


def _resumed(parts: Parts) -> str:
    rows = []
    for name, part in parts.items():
        found = part["found"]
        same = ["equal" if found[k] else "differ" for k in ("equal_losses", "equal_files")]
        rows.append([name.split("-")[1], str(found["steps"]), str(found["kills"]), *same])
    return "\n\n".join([
        "**Kills.** A command killed (SIGKILL) at random moments and gone on with by `--resume`, "
        "against one that was left alone: every step's loss, and every byte of the output.",
        table(["", "steps", "kills", "losses", "files"], rows),
    ])  # fmt: skip


def _processes(parts: Parts) -> str:
    found = parts["processes"]["found"]
    return (
        f"**Two processes** that share the work (torchrun) give the losses of one that sees both "
        f"their batches: the largest relative difference in {found['steps']} steps is "
        f"{found['largest_relative_difference']:.1e}."
    )


def _steps(parts: Parts) -> str:
    rows = []
    for name, part in parts.items():
        ours, theirs, checked = (part["found"].get(side) for side in ("ours", "script", "check"))
        rows.append([name.split("-")[1], *_step(ours)])
        if theirs is None:
            rows[-1] += ["no script", "", "", ""]
            continue
        rows[-1] += [
            theirs["script"].rsplit("/")[-1], *_step(theirs),
            f"{abs(ours['loss'] / checked['loss'] - 1):.0e}",
        ]  # fmt: skip
    processors = ", ".join(dict.fromkeys(one["machine"]["processor"] for one in parts.values()))
    heading = ["", "ours, s", "GiB", "script of diffusers", "s", "GiB", "loss differs by"]
    return "\n\n".join([
        "**A step at full size.** Stable Diffusion 1.5 with synthetic weights, 512 pixels, batch "
        f"1, fp32, AdamW, one thread of {processors}; processor seconds of the fastest step "
        "behind the first, and the process's peak memory, beside the example scripts of "
        "diffusers, run as they stand (ended before they save). They encode picture and caption "
        "in every step, which ours keeps, but for captions with the word that `embedding` learns; "
        "their `embedding` trains the whole table of tokens and puts the other rows back, ours "
        "the row; AdamW is torch's "
        "fused one in ours, its default in theirs. The last column is the difference of our "
        "first loss from that of a script's step written down again, with what ours drew. "
        "Weights, gradients and moments of a whole U-Net (`dreambooth`, here without pictures of "
        "the class, and `finetune`) are 14 GB of memory. LoRA is of rank 4 on attention layers.",
        table(heading, rows),
    ])  # fmt: skip


def _step(side: Record) -> list[str]:
    return [f"{side['step_seconds']:.0f}", f"{side['peak_bytes'] / 2**30:.1f}"]


def _how(part: Record) -> str:
    more = ", text encoder too" if part.get("text_encoder") else ""
    for name, told in (("min_snr", "min-SNR"), ("ema_decay", "averaged by")):
        more += f", {told} {part[name]:g}" if part.get(name) else ""
    if part.get("rank", _RANK) != _RANK:
        more += f", rank {part['rank']}"
    return f"{part['steps']} x {part['batch']}, {part['learning_rate']:g}{more}"


def _sheets(parts: Parts, told: str) -> str:
    shown = [f"![{name}](training-{name}.png)" for name in parts]
    return folded(f"the pictures ({told})", "\n\n".join(shown))
