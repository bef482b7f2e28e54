"""Processes that begin before they are needed: handed out where they would begin alike, ended where they would not."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_sparse.foundation import ahead
from robustbench_sparse.foundation.fences import fenced

MODULE = "json.tool"  # reads its input to the end, and answers


def answer(begun: ahead.Started) -> str:
    try:
        return begun.process.communicate("[1]", timeout=60)[0]
    finally:
        begun.stop()


def test_one_that_has_begun_is_handed_out_once() -> None:
    with ahead.started(MODULE, 2):
        waiting = list(ahead._idle[MODULE])
        taken = [ahead.take(MODULE) for _ in range(3)]
    assert taken[:2] == waiting
    assert taken[2] not in waiting
    assert {"".join(answer(t).split()) for t in taken} == {"[1]"}


def test_one_that_would_import_other_things_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ahead.started(MODULE, 1):
        (waiting,) = ahead._idle[MODULE]
        monkeypatch.syspath_prepend(tmp_path)
        taken = ahead.take(MODULE)
    assert taken is not waiting
    assert waiting.process.poll() is not None
    assert str(tmp_path) in taken.environment["PYTHONPATH"]
    taken.stop()


def test_one_that_would_write_elsewhere_is_ended(tmp_path: Path) -> None:
    with ahead.started(MODULE, 1), fenced(tmp_path, tmp_path / "place"):
        (waiting,) = ahead._idle[MODULE]
        taken = ahead.take(MODULE)
    assert taken is not waiting
    assert waiting.process.poll() is not None
    taken.stop()


def test_one_that_has_died_is_not_handed_out() -> None:
    with ahead.started(MODULE, 1):
        (waiting,) = ahead._idle[MODULE]
        waiting.process.kill()
        waiting.process.wait()
        taken = ahead.take(MODULE)
    assert taken is not waiting
    assert answer(taken)


def test_what_nobody_takes_is_ended_however_the_block_ends() -> None:
    waiting: list[ahead.Started] = []

    def interrupted() -> None:
        with ahead.started(MODULE, 2):
            waiting.extend(ahead._idle[MODULE])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(waiting) == 2
    assert all(w.process.poll() is not None for w in waiting)
    assert all(w.said.closed for w in waiting)
