"""Texts of the page: to copy, of hostile names, and that all of them can be read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.adapters import make_demo_lora
from support.browser import REFUSED, Open, given_picture
from support.served import serving

import sdengine
from sdengine.checkpoints.folder import DEMO_CHECKPOINT
from sdengine.serving.catalogue import Catalogue

HOSTILE = "<img src=x onerror=\"document.title='caught'\">"


def test_copied_texts_make_the_same_file(
    visit: Open, tmp_path: Path, run_text: Callable[..., bytes]
) -> None:
    one = visit().ready()
    prompt = '-a (red:1.2) circle, it\'s on "white" $HOME `id` \\ é\n!'
    one.generate(prompt, seed=5, batch_size=2, steps=6, negative_prompt="--blurry 'x'")
    one.open(1)
    wanted = one.saved()
    for kind in ("command", "python", "curl"):
        folder = tmp_path / kind
        folder.mkdir()
        one.page.check(f'[name="copy"][value="{kind}"]')
        text = one.page.input_value("#copy-text")
        if kind == "python":
            subprocess.run([sys.executable, "-c", text], cwd=folder, check=True, timeout=60)
            assert (folder / "out.png").read_bytes() == wanted
        elif kind == "command" or shutil.which("curl"):
            assert run_text(text, folder) == wanted


def test_texts_name_the_files_of_loras_and_models(
    visit: Open,
    demo_engine: sdengine.Engine,
    tmp_path: Path,
    run_text: Callable[..., bytes],
) -> None:
    make_demo_lora(tmp_path / "my style.safetensors", 1)
    (tmp_path / "demo").symlink_to(DEMO_CHECKPOINT, target_is_directory=True)
    catalogue = Catalogue({"lora": tmp_path, "model": DEMO_CHECKPOINT.parent})
    with serving({"demo": demo_engine}, catalogue=catalogue) as (url, service):
        one = visit(url).ready()
        one.page.click("[data-part=more] > summary")
        one.page.select_option("#model", "demo")
        one.page.click("[data-part=loras] > summary")
        one.page.click("#add-lora")
        one.page.fill('[name="lora"]', "my style")
        one.page.fill('[name="strength"]', "0.5")
        one.generate("a red circle on white", steps=4, seed=2)
        request = list(service.jobs)[-1].request
        assert [(lora.name, lora.unet) for lora in request.loras or ()] == [("my style", 0.5)]
        assert request.model is not None
        one.open()
        wanted = one.saved()
        text = one.page.input_value("#copy-text")
        assert "'--lora=my style.safetensors:0.5'" in text
        assert run_text(text) == wanted
        (tmp_path / "out.png").unlink()
        one.page.check('[name="copy"][value="python"]')
        text = one.page.input_value("#copy-text")
        subprocess.run([sys.executable, "-c", text], cwd=tmp_path, check=True, timeout=60)
        assert (tmp_path / "out.png").read_bytes() == wanted


def test_names_of_embeddings_are_put_into_the_prompt(visit: Open, tmp_path: Path) -> None:
    words = np.random.default_rng(3).normal(0, 0.1, (1, 128)).astype(np.float32)
    save_file({"emb_params": words}, tmp_path / "my-word.safetensors")
    with (
        sdengine.load("demo", embeddings=tmp_path) as engine,
        serving({"demo": engine}) as (url, _),
    ):
        one = visit(url).ready()
        one.page.fill("#prompt", "a red circle on")
        one.page.select_option("#embeddings", "my-word")
        assert one.page.input_value("#prompt") == "a red circle on my-word"
        one.generate("a red circle on my-word", steps=2)
        one.open()
        assert "# the prompt may name an embedding" in one.page.input_value("#copy-text")


def test_texts_are_quoted_whatever_is_in_them(visit: Open) -> None:
    one = visit().ready()
    texts = [
        "", "plain", "it's", "'", "''", "a\nb", "\r\n", "\x1b]0;x\x07", "\x00"[1:], "$(id)", "`id`",
        "\\", "\\n", '"', "é ü 字 🎈", "\x7f\x85\x9b2J", "a\tb", "-x", "*", "~", "!", "#", "a b",
    ]  # fmt: skip
    quoted = one.page.evaluate(
        """async texts => {
            const made = await import("/page/request_texts.js");
            return texts.map(text => [made.shellQuoted(text), made.pythonString(text)]);
        }""",
        texts,
    )
    script = "".join(f"printf '%s\\0' {shell}\n" for shell, _ in quoted)
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == texts
    assert [eval(python, {"__builtins__": {}}) for _, python in quoted] == texts
    for shell, python in quoted:  # nothing that a terminal obeys
        assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in shell)
        assert python.isprintable()


def test_hostile_names_and_prompts_stay_text(
    visit: Open, demo_engine: sdengine.Engine, tmp_path: Path
) -> None:
    name = HOSTILE.replace("/", "")
    (tmp_path / f"{name}.safetensors").write_bytes(b"none")
    (tmp_path / "__proto__.safetensors").write_bytes(b"none")
    with serving({"demo": demo_engine}, catalogue=Catalogue({"lora": tmp_path})) as (url, _):
        one = visit(url, (REFUSED,)).ready()
        one.page.click("[data-part=loras] > summary")
        one.page.click("#add-lora")
        one.page.fill('[name="lora"]', name)
        one.ask(HOSTILE, steps=4)
        one.page.wait_for_selector("#form-error:not(:empty), #loras-part .error")
        one.page.fill('[name="lora"]', "__proto__")
        one.page.click("#generate")
        one.page.wait_for_selector(
            "#form-error:has-text('__proto__'), #loras-part .error:has-text('__proto__')"
        )
        one.page.click(".remove-row")
        one.generate(HOSTILE, steps=4)
        one.open()
        assert HOSTILE in one.page.inner_text("#parameters")
        assert one.page.title() == "sdengine"
        assert one.page.locator('img[src="x"]').count() == 0


CONTRAST = """() => {
    const parts = text => text.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(v => v / 255).map(
            v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const holder = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !holder.checkVisibility()) continue;
        if (holder.closest(":disabled, .unseen, noscript, option")) continue;
        let ground = holder;
        while (ground && parts(getComputedStyle(ground).backgroundColor)[3] === 0)
            ground = ground.parentElement;
        const [a, b] = [getComputedStyle(holder).color, getComputedStyle(ground).backgroundColor]
            .map(text => luminance(parts(text))).sort((x, y) => y - x);
        found.push([(a + 0.05) / (b + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_everything_fits_and_can_be_read(visit: Open, scheme: str, width: int) -> None:
    one = visit(
        viewport={"width": width, "height": 800}, color_scheme=scheme, allowed=(REFUSED,)
    ).ready()

    def check() -> None:
        found = one.page.evaluate(CONTRAST)
        assert len(found) > 20
        assert [one for one in found if one[0] < 4.5] == []
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width

    check()
    for part in one.page.locator("details:visible > summary").all():
        part.click()
    one.page.set_input_files("#image-holder input", given_picture())
    one.page.check("#with-mask")
    one.ask("x" * 300, steps=1000)
    one.page.wait_for_selector(".field > .error")
    check()
    one.page.click("#image-holder .remove")
    one.generate("long " + "y" * 300, steps=3)
    check()
    one.open()
    check()
    box = one.page.locator("#large").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
    inner = "(e => e.scrollWidth <= e.clientWidth)(document.getElementById('large'))"
    assert one.page.evaluate(inner)
