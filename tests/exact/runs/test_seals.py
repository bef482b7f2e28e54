"""The record of a run's files: what counts, what was changed, and what a kill leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import write_text
from robustbench_sparse.runs.names import RECORD
from robustbench_sparse.runs.seals import Seals, seal


def stored(folder: Path, **texts: str) -> Seals:
    seals = Seals(folder)
    with seals.renewing(*texts):
        for name, text in texts.items():
            write_text(folder / name, text)
    return seals


def test_what_was_written_within_the_block_counts(tmp_path: Path) -> None:
    seals = stored(tmp_path, a="1", b="2")
    assert seals.has("a", "b")
    assert seals.holds("a", "b")
    seals.check()
    assert not seals.has("a", "c")
    with pytest.raises(UserError, match=r"/c: not in files\.json"):
        seals.check("c")


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    seals = stored(tmp_path, a="1", b="2")
    (tmp_path / "b").write_text("3")
    seals.check("a")
    for names in ((), ("a", "b")):
        with pytest.raises(UserError, match="/b: changed since it was stored"):
            seals.check(*names)
    assert seals.has("b")
    assert not seals.holds("b")
    (tmp_path / "b").unlink()
    with pytest.raises(UserError, match="/b: missing"):
        seals.check()
    assert not seals.holds("b")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_files_that_were_half_renewed_do_not_count(tmp_path: Path, after: int) -> None:
    """As a kill leaves them: two files belong together, and one of them is new."""
    seals = stored(tmp_path, verdicts="old", key="old", other="x")
    block = seals.renewing("verdicts", "key")
    block.__enter__()
    for name in ("verdicts", "key")[:after]:
        write_text(tmp_path / name, "new")
    assert not seals.has("verdicts")
    assert not seals.has("key")
    assert seals.holds("other")


def test_a_file_that_was_not_written_again_is_gone_from_the_record(tmp_path: Path) -> None:
    seals = stored(tmp_path, a="1")
    with seals.renewing("a"):
        (tmp_path / "a").unlink()
    assert seals.hashes() == {}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"../a": "x"}', '{"/etc/passwd": "x"}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=r"files\.json"):
        Seals(tmp_path).check()


def test_sealing_takes_in_all_but_hidden_files(tmp_path: Path) -> None:
    for name in ("a", "x/b", ".lock", ".parts/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    seal(tmp_path)
    assert sorted(json.loads((tmp_path / RECORD).read_text())) == ["a", "x/b"]
    Seals(tmp_path).check()
