"""Places that split_guidance names, on made-up machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sdengine.backends.places import Place, find_places
from sdengine.errors import BackendUnavailableError, ConfigError


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(2, 16)), raising=False)


def nodes(folder: Path, *lists: str) -> Path:
    """Write what the kernel says of NUMA nodes; one of memory alone has no processors."""
    for number, cpus in enumerate(lists):
        (folder / f"node{number}").mkdir()
        (folder / f"node{number}" / "cpulist").write_text(f"{cpus}\n")
    (folder / "possible").write_text("0-7\n")
    return folder


@pytest.mark.parametrize(
    ("cpus", "name"), [((3,), "3"), ((0, 1, 2, 5), "0-2,5"), ((0, 2, 4, 5), "0,2,4-5")]
)
def test_a_place_is_named_as_the_kernel_lists_processors(cpus: tuple[int, ...], name: str) -> None:
    assert Place(cpus).name == name


@pytest.mark.parametrize(
    ("option", "names"),
    [("2/3", ("2", "3")), ("2-5,8/6-7", ("2-5,8", "6-7")), ("4,2 / 15", ("2,4", "15"))],
)
def test_lists_of_processors(tmp_path: Path, option: str, names: tuple[str, str]) -> None:
    first, second = find_places(option, tmp_path)
    assert (first.name, second.name) == names
    assert first.nodes == second.nodes == ()


def test_lists_know_their_nodes(tmp_path: Path) -> None:
    folder = nodes(tmp_path, "0-7", "8-15")
    assert [place.nodes for place in find_places("2/3", folder)] == [(0,), (0,)]
    assert [place.nodes for place in find_places("2/8", folder)] == [(0,), (1,)]
    assert [place.nodes for place in find_places("2,8/3,9", folder)] == [(0, 1), (0, 1)]


@pytest.mark.parametrize(
    ("lists", "names", "members"),
    [
        (("0-7", "8-15"), ("2-7", "8-15"), ((0,), (1,))),
        (("0-3,8-11", "4-7,12-15"), ("2-3,8-11", "4-7,12-15"), ((0,), (1,))),
        (("0-3", "4-7", "8-11", "12-15"), ("2-7", "8-15"), ((0, 1), (2, 3))),
        (("0-7", "", "8-15", "16-23"), ("2-7", "8-15"), ((0,), (2,))),  # others may not be used
    ],
)
def test_numa_is_a_half_of_the_nodes_each(
    tmp_path: Path, lists: tuple[str, ...], names: tuple[str, str], members: Any
) -> None:
    found = find_places("numa", nodes(tmp_path, *lists))
    assert tuple(place.name for place in found) == names
    assert tuple(place.nodes for place in found) == members


@pytest.mark.parametrize("lists", [(), ("0-15",), ("0-1", "2-15")])
def test_numa_wants_two_nodes_that_may_be_used(tmp_path: Path, lists: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"split_guidance: 'numa' .* NUMA node"):
        find_places("numa", nodes(tmp_path, *lists))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("", "two lists of processors with a / between them"),
        ("2", "two lists"),
        ("2/", "two lists"),
        ("2/3/4", "two lists"),
        ("2;3", "two lists"),
        ("2-/3", "two lists"),
        ("5-3/2", "two lists"),
        ("-1/3", "two lists"),
        ("٣/4", "two lists"),
        ("9999999/3", "two lists"),
        ("2-4/4-6", "Both name 4"),
        ("2/1", "processors that this process may use, 2-15.*Processor 1 is none of them"),
        ("2/3-999999", "Processor 16 is none"),
        (["2", "3"], "two lists"),
    ],
)
def test_what_names_no_two_places(tmp_path: Path, option: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"split_guidance: .*{said}"):
        find_places(option, tmp_path)


def test_systems_that_bind_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    with pytest.raises(BackendUnavailableError, match="does not bind threads"):
        find_places("numa")
