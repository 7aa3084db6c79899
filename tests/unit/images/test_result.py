from __future__ import annotations

import gc
import os
import pickle
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdengine.errors import ConfigError, OutputError
from sdengine.images.png import check_output
from sdengine.images.provenance import Provenance
from sdengine.images.result import Result
from sdengine.images.timings import StageTime, Timings
from sdengine.inputs.embeddings import Embedding
from sdengine.request.control import Control
from sdengine.request.request import Request
from sdengine.serving.openai.pictures import encoded


def example_result(count: int = 1, **changes: Any) -> Result:
    request = Request(
        **{
            "prompt": "a circle",
            "width": 16,
            "height": 8,
            "seed": 7,
            "batch_size": count,
            **changes,
        }
    )
    generator = np.random.default_rng(0)
    arrays = tuple(generator.integers(0, 256, (8, 16, 3), dtype=np.uint8) for _ in range(count))
    provenance = Provenance("openvino", "fp32", model="demo", model_hash="ab" * 32)
    return Result(arrays, request, Timings({}, 0.0), provenance)


def test_saved_image_is_the_array(tmp_path: Path) -> None:
    result = example_result()
    assert result.save(tmp_path / "out.png") == [tmp_path / "out.png"]
    with Image.open(tmp_path / "out.png") as image:
        assert np.array_equal(np.asarray(image), result.arrays[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_results_go_through_pickle() -> None:
    """As what a worker process sends back."""
    grey = np.full((8, 16), 128, np.uint8)
    vectors = {"clip_l": np.ones((2, 8), np.float32)}
    embedding = Embedding("mine", "ab" * 32, vectors, "mine.pt")
    made = [
        example_result(2, embeddings=(embedding,)),
        example_result(image=grey, mask=grey, controls=(Control("edges", grey),)),
    ]
    for result in made:
        timed = replace(result, timings=Timings({"unet": StageTime(2.0, 3)}, 5.0))
        back = pickle.loads(pickle.dumps(replace(timed, embeddings=((embedding,),))))
        assert back.request == result.request and back.provenance == result.provenance
        assert all(map(np.array_equal, back.arrays, result.arrays))
        assert back.timings == timed.timings and back.timings.unet_calls == 3
        ((found,),) = back.embeddings
        assert found == embedding and found.file == "mine.pt"
        assert not found.parts["clip_l"].flags.writeable
        assert back.parameters() == result.parameters()


def test_batch_names(tmp_path: Path) -> None:
    files = example_result(3).save(str(tmp_path / "out.png"))
    assert [file.name for file in files] == ["out-1.png", "out-2.png", "out-3.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name for file in files]


@pytest.mark.parametrize("prompt", ["a circle, red", "ein grüner Kreis", "赤い円 🔴"])
def test_parameters_chunk(tmp_path: Path, prompt: str) -> None:
    result = example_result(2, prompt=prompt, negative_prompt="blue")
    result.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out-2.png") as image:
        text = image.info["parameters"]
    lines = text.split("\n")
    assert lines[0] == prompt
    assert lines[1] == "Negative prompt: blue"
    pairs = dict(pair.split(": ", 1) for pair in lines[2].split(", "))
    assert pairs["Steps"] == "25"
    assert pairs["Sampler"] == "DPM++ 2M"
    assert pairs["Schedule type"] == "Karras"
    assert pairs["CFG scale"] == "7.5"
    assert pairs["Seed"] == "8"
    assert pairs["Size"] == "16x8"
    assert pairs["Model hash"] == "ababababab"


@pytest.mark.parametrize("name", ["out.jpg", "out", "", "a\0.png"])
def test_only_png(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="png"):
        example_result().save(tmp_path / name if name else "")


def test_missing_folder_and_folder_as_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        example_result().save(tmp_path / "nowhere" / "out.png")
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "dir.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not a folder"):
        check_output(tmp_path / "file" / "out.png")
    with pytest.raises(OutputError):
        check_output(tmp_path / ("x" * 300 + ".png") / "out.png")


def test_unwritable_folder() -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        check_output("/proc/out.png")


def test_files_that_are_there_stay(tmp_path: Path) -> None:
    names = [
        [file.name for file in example_result(n).save(tmp_path / "out.png")] for n in (1, 1, 2)
    ]
    assert names == [["out.png"], ["out-1.png"], ["out-2.png", "out-3.png"]]
    (tmp_path / "out.png").unlink()
    (tmp_path / "out-7.png").symlink_to("nowhere")
    (tmp_path / "out-x.png").write_bytes(b"")
    assert example_result().save(tmp_path / "out.png") == [tmp_path / "out.png"]
    assert example_result().save(tmp_path / "out.png") == [tmp_path / "out-8.png"]
    assert (tmp_path / "out-7.png").is_symlink()


def test_files_that_are_there_are_replaced_where_that_is_wanted(tmp_path: Path) -> None:
    for count, names in ((1, ["out.png"]), (2, ["out-1.png", "out-2.png"])):
        result = example_result(count)
        for _ in range(2):
            assert [f.name for f in result.save(tmp_path / "out.png", overwrite=True)] == names
    assert sorted(os.listdir(tmp_path)) == ["out-1.png", "out-2.png", "out.png"]


def test_a_file_that_another_process_writes_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def come_between(handle: int) -> None:
        monkeypatch.undo()
        (tmp_path / "out-2.png").write_bytes(b"theirs")

    monkeypatch.setattr(os, "fsync", come_between)
    files = example_result(2).save(tmp_path / "out.png")
    assert [file.name for file in files] == ["out-3.png", "out-4.png"]
    assert (tmp_path / "out-2.png").read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path)) == ["out-2.png", "out-3.png", "out-4.png"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_failed_write_keeps_the_old_file(
    overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out-1.png").write_bytes(b"old")
    written: list[int] = []

    def fill_up(handle: int) -> None:
        written.append(handle)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(OutputError, match="No space left"):
        example_result(2).save(tmp_path / "out.png", overwrite=overwrite)
    assert (tmp_path / "out-1.png").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out-1.png"]


def test_interrupt_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        example_result(2).save(tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []


def test_file_size_limit(tmp_path: Path) -> None:
    """A real refusal by the system, in a process of its own because the limit stays."""
    program = (
        "import resource, sys\n"
        "from sdengine.errors import OutputError\n"
        "from sdengine.images.png import write_images\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_images(sys.argv[1], [bytes(5000)])\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    assert resource.RLIMIT_FSIZE is not None
    target = tmp_path / "out.png"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_images_are_made_once() -> None:
    result = example_result()
    assert result.images[0] is result.images[0]
    assert result.images[0].size == (16, 8)


def test_files_keep_no_second_copy_of_an_image(tmp_path: Path) -> None:
    result = example_result()
    others = _images_alive()
    first = result.png()
    result.save(tmp_path / "out.png")
    for output_format in ("png", "jpeg", "webp"):  # as servers send them
        encoded(result, 0, output_format, 80)
    assert _images_alive() == others
    kept = result.images[0]
    assert _images_alive() == others + 1 and result.png() == first
    kept.putpixel((0, 0), (1, 2, 3))  # what somebody changes is what is saved
    assert result.png() != first


def _images_alive() -> int:
    """Count those of the result's size: Pillow has one of its own."""
    gc.collect()
    images = (found for found in gc.get_objects() if issubclass(type(found), Image.Image))
    return sum(image.size == (16, 8) for image in images)


def test_a_thread_that_asks_while_images_are_made_sees_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = example_result(3)
    make, found = Image.fromarray, []

    def ask_meanwhile(*arguments: Any) -> Image.Image:
        monkeypatch.setattr(Image, "fromarray", make)
        made = make(*arguments)
        asker = threading.Thread(target=lambda: found.append(len(result.images)))
        asker.start()
        asker.join()
        return made

    def second(*arguments: Any) -> Image.Image:
        monkeypatch.setattr(Image, "fromarray", ask_meanwhile)
        return make(*arguments)

    monkeypatch.setattr(Image, "fromarray", second)
    assert len(result.images) == 3
    assert found == [3]
    assert len(result.images) == 3


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.png.1234abcd.sdengine").write_bytes(b"half")
    (tmp_path / ".mine").write_bytes(b"precious")
    example_result().save(tmp_path / "out.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "out.png"]
