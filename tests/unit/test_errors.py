"""Messages of errors, as far as all of them share it."""

from __future__ import annotations

from sdengine.errors import ConfigError


def test_of_a_long_path_both_ends_are_shown() -> None:
    for folders in (20, 2000):
        path = "/srv" + "/folder" * folders + "/a.png"
        message = str(ConfigError.for_field("output", path, "b"))
        assert message.startswith("output: '/srv/folder")
        assert "/folder/a.png' is not accepted; expected b." in message
        assert len(message) < 120
