"""Sections of the report about pictures: what their tables cannot say themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.benchmarks import accuracy_tables as accuracy
from sdengine.benchmarks.markdown import table

Record = Mapping[str, Any]


def adapter_formats(record: Record) -> str:
    """Return how far pictures with adapters of every format are from those of other libraries."""
    return "\n\n".join(
        [
            f"One picture a cell, tiny networks with seeded weights, {record['side']} pixels, "
            f"{record['steps']} steps, guidance scale {record['guidance_scale']:g}, fp32, native "
            "target, equal seeds. A file is written by the library that its format comes from, or "
            "built from the documented layout; our request takes it, and the reference changes "
            f"diffusers {record['versions']['diffusers']}'s pipeline: diffusers where it reads the "
            f"format, PEFT {record['versions']['peft']}'s or LyCORIS "
            f"{record['versions']['lycoris-lora']}'s layers, or the documented formula. First "
            "figure: PSNR against the reference, in dB; second: against our own picture without "
            f"the file. Accepted: at least {record['required_db']:g}, at most "
            f"{record['effect_db']:g}.",
            accuracy.adapter_formats(record),
            "LyCORIS's files are of the text encoders too, and so are those with kohya's, "
            "diffusers' and OneTrainer's names; OneTrainer's are of every layer. diffusers takes "
            "the original block 10 of SD 1 and 2 for block 1, so that for those it is given the "
            "same tensors under its own names, which its reader of checkpoints finds. LyCORIS's "
            "DoRA is compared at strength 1, where it means the same as the web UI's. FaceID is "
            "without a LoRA inside; those with one are refused by name. Web UIs train "
            "hypernetworks for SD 1 and 2 alone.",
        ]
    )


def emphasis(record: Record) -> str:
    """Return what emphasis does to a colour's share of the picture."""
    return (
        "Share of the picture's pixels in the colour whose weight changes, mean over the seeds.\n\n"
        + accuracy.emphasis(record)
    )


def quantisation(record: Record) -> str:
    """Return what U-Nets in eight bits do to pictures."""
    return "\n\n".join(
        [
            f"{record['prompts']} pictures, {record['steps']} steps, against the same in fp32. The "
            "graph that TensorRT's builder is given runs in onnxruntime on the CPU, which rounds "
            "values and weights as QuantizeLinear and DequantizeLinear say; text encoder and "
            "decoder are the native target's in fp32 on both sides. Errors are those on prompts "
            "that no scale was taken from. tiny-sdxl has seeded weights: they magnify errors, and "
            "its pictures are noise.",
            accuracy.quantisation(record),
        ]
    )


def guidance_interval(record: Record) -> str:
    """Return what guidance inside an interval saves, and what it does to prompt following."""
    held = record["held_out"]
    changed = held["right_throughout"] + held["right_in_interval"] - 2 * held["right_in_both"]
    return "\n\n".join(
        [
            f"Demo model, {record['backend']} in {record['precision']}, {record['size']} pixels, "
            f"guidance scale {record['guidance_scale']:g}, {record['sampler']}, "
            f"{record['schedule']}, {record['steps']} steps. Medians of {record['rounds']} whole "
            f"requests in turns, on {record['machine']['processor']} with "
            f"{record['machine']['cores']} cores, of which others took "
            f"{record['other_load_percent']:g} %, in {record['threads']} thread"
            f"{'' if record['threads'] == 1 else 's'}. Pictures are scored as above, on "
            f"{record['prompts_of_choice']} prompts that are not the held-out ones.",
            accuracy.guidance_interval(record),
            "Chosen: the fewest guided steps with at most "
            f"{record['max_fewer_in_a_hundred']} in a hundred fewer right than with guidance at "
            f"every step, `--guidance-interval {record['chosen']}`. On the {held['prompts']} "
            f"held-out prompts, with the same seeds, {held['right_in_interval']} are right with it "
            f"and {held['right_throughout']} without; changed: {changed} (two-sided sign test: "
            f"p = {held['p']:g}). The processor time is what others' load disturbs least.",
        ]
    )


def picture_tasks(record: Record) -> str:
    """Return what pictures from pictures make of drawn scenes."""
    return "\n\n".join(
        [
            f"Demo model in {record['precision']}, {record['scenes']} drawn scenes of compositions "
            f"that training never saw, {record['size']} pixels, {record['steps']} steps. "
            "Inpainting asks for the scene with its object in another colour, and masks a square "
            f"around the object with a blur of {record['blur']:g}; `rest equal` counts pictures "
            "whose other pixels are the same to the byte.",
            accuracy.inpainting(record),
            "Image to image asks for the same of the whole picture. Distance is the mean absolute "
            f"difference of pixels, of 255; in {record['image_to_image']['never_falls']} of "
            f"{record['scenes']} scenes it never falls as strength grows.",
            accuracy.image_to_image(record),
            "Outpainting gets the middle quarter of each scene's area, adds "
            f"{record['extended']} pixels at each side, and should give the scene again. `No seam` "
            "counts pictures where at no border two lines of pixels differ more in the mean than "
            "the most different two inside the picture that was given (of the scenes as drawn: "
            f"{record['outpainting']['no_seam_in_drawn_scenes']}). Where it counts one, an object "
            "lies across the border and its outline goes on with a bend, or ends near there; "
            "`beside outlines` is the same mean without pixels within 6 of an outline of the scene "
            "as drawn, and `no line` takes the median along the whole line.",
            accuracy.outpainting(record),
            "By how much neighbouring pixels differ over the border, at each side of the first "
            "kind above, against the mean of the same difference inside the picture that was "
            f"given; over {record['seams']['scenes']} scenes, with 95 % intervals.",
            accuracy.seams(record),
            "Enlarged four times at the same side, pictures whose colours are 14 of 255 off the "
            "model's own; how far the outermost pixels are from the first background, median.",
            accuracy.repeated_extensions(record),
            "Image to image with a picture's own caption, as for variations, more pictures of a "
            "data set, or strangers in the place of people. The original is known again where of "
            "eight pictures of that caption, which differ a little in place, size and shade, it is "
            "nearest to the result; chance is one in eight.",
            accuracy.variations(record),
            "From 128 to 256 pixels by Lanczos' filter alone, and by image to image from what it "
            "gives, against the scene drawn at 256; image to image draws edges anew.",
            accuracy.enlarging(record),
            "Latents in a file of a byte a value (`Engine.encode`, `Latents.save`), beside the "
            "best JPEG file of no more bytes; medians. The encoder and the decoder lose more than "
            "the bytes do, so that larger files of latents do not exist: where JPEG is better, it "
            "stays so.",
            accuracy.codec(record),
        ]
    )


def roofline(record: Record) -> str:
    """Return what a U-Net's step costs by arithmetic, and what the run time adds to it."""
    return "\n\n".join(
        [
            f"**Computed, not measured**: one evaluation with {record['rows']} rows in 16 bits by "
            f"the data sheet of an {record['gpu']}. Each operation takes the longer of its "
            f"arithmetic (at {100 * record['reached']:g} % of the peak, by whole waves of tiles) "
            "and its bytes, and a launch. It is optimistic; published engines take 1.5 to 2 times "
            "as long. Fused: attention, GroupNorm with SiLU, LayerNorm with its sum and GEGLU are "
            "one kernel each, and products add the residual that follows.",
            accuracy.roofline(record),
            "Beside that, what the run time does, counted on the stand-ins of CUDA and held by "
            "`tests/cpp/fake_cuda/test_cuda_ledger.cpp` and `tests/parity/test_request_ledger.py`: "
            "of each step one launch of a graph, whose one kernel beside the network guides, "
            "steps and scales for the next; no copy of latents and no pageable upload; of K "
            "steps K - 1 waits, for the queue to have room, and 2 downloads, whether or not "
            "progress is shown. A step that went through the host would wait once and copy "
            "latents twice.",
        ]
    )


def demo_variants(records: Mapping[str, Record]) -> str:
    """Return what variants of the demo model make of what they are told."""
    record = records["inpainting"]
    return "\n\n".join(
        [
            f"Native target in {record['precision']}, {record['scenes']} drawn scenes of "
            f"compositions that training never saw, {record['size']} pixels, {record['steps']} "
            "steps. Inpainting by the U-Net of nine channels, at strength 1: of the scene with its "
            "object in another colour, as in the section before; and of objects that a mask hides "
            "one half of, with their prompt (`halves right`) and with none at all (`without a "
            "prompt`). A picture is right if its scene is, shape and place included.",
            accuracy.inpainting_variant(record),
            "![masks and results; halves, with and without a prompt](demo-variants-inpainting.png)",
            "A ControlNet steers the demo model itself by edges of scenes whose objects are where "
            "no prompt says. The F1 score counts edges that are within two pixels of others, in "
            "both directions.",
            accuracy.edges_followed(records["edges"]),
            "![edges, then results at scales 1, 0.5 and 0](demo-variants-edges.png)",
            "The U-Net of five channels reads a depth map of two objects, one of which covers the "
            "other. Overlap is the intersection of what is drawn with what the map has, over their "
            "union. The order is right where the nearer one's colour is seen where they meet, with "
            "the same prompt and seed as drawn and with the depths exchanged. A network "
            "that saw only outlines would be right in one of the two, and never in both. The "
            "weights are what `sdengine train variant depth` made in one go, in fp16.",
            accuracy.depth_followed(records["depth"]),
            "![depth maps and results, then exchanged](demo-variants-depth.png)",
            "The tiny decoder makes pictures of the same latents as the autoencoder's own, half of "
            "them of prompts of one object and half of two. Its time is the shortest of all.",
            accuracy.tiny_decoder(records["tiny"]),
            "![the autoencoder's, then the tiny decoder's](demo-variants-tiny.png)",
        ]
    )


def vae_bands(record: Record) -> str:
    """Return what computing a VAE's largest maps in bands saves and costs."""
    columns = (
        "", "planned, MB", "in bands", "resident memory grew by, MB", "in bands",
        "processor time, s", "in bands", "ratio", "difference",
    )  # fmt: skip
    names = {"vae_decoder": "decoder", "vae_encoder": "encoder"}
    rows = []
    told = [
        f"{names[network]} {', '.join(f'{side} {error:.1e}' for side, error in found.items())}"
        for network, found in record["errors"].items()
    ]
    for row in record["rows"]:
        whole, bands = (row["sides"][name] for name in ("whole maps", "bands"))
        cells = [f"{names[row['network']]}, {row['side']}x{row['side']}"]
        cells += [f"{side['planned_bytes'] / 1e6:.0f}" for side in (whole, bands)]
        if "relative_rms" in row:
            cells += [f"{side['grown_bytes'] / 1e6:.0f}" for side in (whole, bands)]
            cells += [f"{side['cpu_seconds']:.1f}" for side in (whole, bands)]
            cells.append(f"{bands['cpu_seconds'] / whole['cpu_seconds']:.2f}x")
            cells.append(f"{row['relative_rms']:.1e}")
        rows.append(cells + ["not run"] * (len(columns) - len(cells)))
    return "\n\n".join(
        [
            f"Stable Diffusion 1.5's VAE with synthetic weights in {record['precision']}, "
            f"`{record['isa']}`, {record['threads']} threads, with as few maps at a time as there "
            "can be (`--vae-tiles always`) against whole maps. Planned are the maps, kept ones and "
            "those of the run; resident memory is the process's at its largest, less what it was "
            "before the run, when the weights had been read: maps and the kernels' scratch. Each "
            f"run is a process of its own; rounds: {record['rounds']}. Other programs took "
            f"{record['other_load_percent']:.0f} % of the machine, so processor time is given.",
            table(columns, rows),
            "The last column is what rounding makes of it. Against fp32, at "
            f"{record['error_side']} pixels: {'; '.join(told)}.",
        ]
    )
