from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.commands import call, one_line
from tests.helpers.written_rows import Written, written

pytest.importorskip("jinja2")


def test_report_writes_pages_and_says_where(tmp_path: Path) -> None:
    written(tmp_path / "b", {"mine": Written(stands=[1.0, 0.0])}, certificate="off")
    out = tmp_path / "out"
    done = call("report", tmp_path / "b", "-o", out, "--title", "Ours", "--no-charts", "--quiet")
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert f"written: {out / 'index.html'} (1 row)" in done.stderr
    assert "<title>Ours</title>" in (out / "index.html").read_text()
    assert not (out / "charts.html").exists()
    assert len(list((out / "runs").glob("*.html"))) == 1


def test_report_without_results_is_one_line(tmp_path: Path) -> None:
    assert "no such folder" in one_line(call("report", tmp_path / "none", "-o", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "robustbench_sparse[report]" in one_line(call("report", "zoo:", "-o", tmp_path / "out"))


def test_serve_without_results_is_one_line(tmp_path: Path) -> None:
    assert "no such folder" in one_line(call("serve", tmp_path / "none"))
