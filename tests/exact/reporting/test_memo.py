"""Rows are handed out again only while nothing that they were read from has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_sparse.foundation.files import write_text
from robustbench_sparse.reporting.memo import Memo

MANIFEST: dict[str, Any] = {"name": "b", "attacks": ["fgsm"], "runs": [{"run": "a"}]}
ENTRY = {"run": "a", "seed": 0}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_text(tmp_path / "a" / "outcomes" / "clean.csv", "1")
    return tmp_path / "a"


def reading(home: Path) -> Callable[[], dict[str, Any]]:
    return lambda: {"clean": (home / "outcomes" / "clean.csv").read_text()}


def never() -> dict[str, Any]:
    raise AssertionError("read anew, though nothing has changed")


def replaced_in_place(home: Path) -> None:
    """Another text of the same size and time in a new file, as an atomic write leaves it."""
    path = home / "outcomes" / "clean.csv"
    facts = path.stat()
    write_text(path, "0")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], None]] = {
    "text": lambda home: write_text(home / "outcomes" / "clean.csv", "0"),
    "same size and time": replaced_in_place,
    "another file": lambda home: write_text(home / "certificate" / "M1.json", "{}"),
    "file gone": lambda home: (home / "outcomes" / "clean.csv").rename(home.parent / "elsewhere"),
    "touched": lambda home: os.utime(home / "outcomes" / "clean.csv", ns=(0, 1)),
}


def test_a_row_is_read_once_whatever_is_done_to_the_copy(home: Path) -> None:
    memo = Memo()
    first = memo.row(home, MANIFEST, ENTRY, reading(home))
    first["rank"] = 3
    more = {**MANIFEST, "runs": [*MANIFEST["runs"], {"run": "b"}]}
    assert memo.row(home, more, ENTRY, never) == {"clean": "1"}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_file_reads_it_anew(home: Path, change: str) -> None:
    memo, calls = Memo(), []
    memo.row(home, MANIFEST, ENTRY, reading(home))
    CHANGES[change](home)

    def read() -> dict[str, Any]:
        calls.append(change)
        return {"clean": "anew"}

    assert memo.row(home, MANIFEST, ENTRY, read) == {"clean": "anew"}
    assert calls == [change]
    assert memo.row(home, MANIFEST, ENTRY, never) == {"clean": "anew"}


@pytest.mark.parametrize(
    ("manifest", "entry"),
    [({**MANIFEST, "attacks": ["fgsm", "pgd"]}, ENTRY), (MANIFEST, {**ENTRY, "seed": 1})],
)
def test_another_manifest_reads_it_anew(home: Path, manifest: dict[str, Any], entry: dict[str, Any]) -> None:
    memo = Memo()
    memo.row(home, MANIFEST, ENTRY, reading(home))
    assert memo.row(home, manifest, entry, lambda: {"clean": "anew"}) == {"clean": "anew"}


def test_a_row_that_cannot_be_read_is_not_kept(home: Path) -> None:
    memo = Memo()
    with pytest.raises(OSError, match="half written"):
        memo.row(home, MANIFEST, ENTRY, lambda: (_ for _ in ()).throw(OSError("half written")))
    assert memo.row(home, MANIFEST, ENTRY, reading(home)) == {"clean": "1"}


def test_what_changes_while_it_is_read_is_read_again(home: Path) -> None:
    memo = Memo()

    def read() -> dict[str, Any]:
        row = reading(home)()
        write_text(home / "outcomes" / "clean.csv", "later")
        return row

    assert memo.row(home, MANIFEST, ENTRY, read) == {"clean": "1"}
    assert memo.row(home, MANIFEST, ENTRY, reading(home)) == {"clean": "later"}
