from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from sdengine.errors import ConfigError, OutputError
from sdengine.serving.tokens import Allowance, Tokens, add_token, read_tokens


def test_a_secret_is_known_by_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    secrets = {name: add_token(file, name) for name in ("shop", "studio")}
    assert os.stat(file).st_mode & 0o077 == 0
    assert not any(secret in file.read_text() for secret in secrets.values())
    tokens = Tokens(read_tokens(file))
    assert len(tokens) == 2
    for name, secret in secrets.items():
        found = tokens.of(secret)
        assert found is not None
        assert found.name == name
        assert tokens.named(name) is found
    for wrong in ("", "sd-", secrets["shop"][:-1], secrets["shop"] + "\ud800"):
        assert tokens.of(wrong) is None
    with pytest.raises(ConfigError, match="name: 'shop'"):
        add_token(file, "shop")
    with pytest.raises(ConfigError, match="name: 'a b'"):
        add_token(file, "a b")
    assert len(read_tokens(file)) == 2
    with pytest.raises(OutputError, match="cannot be written"):
        add_token(tmp_path / "none" / "tokens.json", "a")


GOOD = {"name": "a", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "tokens: "),
        ("{}", "tokens: "),
        ("[]", "tokens: .* at least one token"),
        ("[1]", r"tokens\[0\]: "),
        (json.dumps([{"name": "a"}]), r"tokens\[0\]: "),
        (json.dumps([{**GOOD, "admin": True}]), r"tokens\[0\]: "),
        (json.dumps([{**GOOD, "sha256": "ff"}]), "sha256: 'ff'"),
        (json.dumps([{**GOOD, "max_queue": 0}]), "max_queue: 0"),
        (json.dumps([{**GOOD, "images_per_hour": True}]), "images_per_hour: True"),
        (json.dumps([GOOD, GOOD]), r"tokens\[1\].name: 'a'"),
        ("[" * 100_000, "tokens: "),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=f"^{said}"):
        read_tokens(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokens: .*none.json.* cannot be read"):
        read_tokens(tmp_path / "none.json")


def test_an_allowance_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    now: list[Any] = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    allowance = Allowance(60)
    assert allowance.seconds_until(60) == 0
    allowance.use(60)
    assert allowance.seconds_until(1) == pytest.approx(60)
    now[0] += 90
    assert allowance.seconds_until(1) == 0
    assert allowance.seconds_until(2) == pytest.approx(30)
    assert allowance.seconds_until(61) is None
    now[0] += 1e6
    assert allowance.seconds_until(60) == 0
