"""Named files: which files of a folder prompts may name."""

from __future__ import annotations

from pathlib import Path

from sdengine.adapters.named_files import NamedFiles


def test_what_a_training_keeps_beside_its_file_has_no_name(tmp_path: Path) -> None:
    kept = tmp_path / "style.safetensors.training" / "latents"
    kept.mkdir(parents=True)
    own = tmp_path / "more" / "style.safetensors"
    own.parent.mkdir()
    for path in (own, kept / "0a.safetensors", kept.parent / "state-000100.pt"):
        path.write_bytes(b"")
    library = NamedFiles(
        "loras", (".safetensors", ".pt"), lambda p: p, lambda p: p.stem, lambda p: "", str
    )
    library.add(tmp_path)
    assert library.names == ("style",)
    assert library.find("style") == [own]
