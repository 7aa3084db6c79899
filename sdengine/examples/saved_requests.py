"""Requests as values: warm the engine up for them, keep one as JSON, run it again from there."""

from __future__ import annotations

import sys
from pathlib import Path

import sdengine


def main(folder: Path) -> None:
    """Write ring.json and the picture that it asks for, twice the same."""
    with sdengine.load("demo") as engine:
        engine.warm_up(batch=1)
        request = engine.request("a white ring on a green background", num_inference_steps=8)
        (folder / "ring.json").write_text(request.to_json(), encoding="utf-8")
        result = engine.run(request)
        print(f"loading took {result.timings.load_ms:.0f} ms after the warm-up")
        again = sdengine.Request.from_json((folder / "ring.json").read_text(encoding="utf-8"))
        print(*result.save(folder / "ring.png"), *engine.run(again).save(folder / "again.png"))
    made = sdengine.read_metadata(folder / "again.png")
    print("made with", made.provenance.backend, made.provenance.precision, "seed", request.seed)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
