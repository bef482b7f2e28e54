from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.pages.boards import boards_of
from robustbench_sparse.reporting.tables import write
from tests.helpers.written_rows import Written, written


def test_a_row_that_two_sources_have_is_shown_once_and_the_first_source_counts(tmp_path: Path) -> None:
    home = written(tmp_path / "b", {"mine": Written(stands=[1.0, 0.0])}, certificate="off")
    write(home)
    csv = tmp_path / "leaderboard.csv"
    csv.write_text((home / "leaderboard.csv").read_text())
    (board,) = boards_of([home, csv])
    assert [e.row["run"] for e in board.entries] == ["mine"]
    assert board.entries[0].folder == home / "runs" / "mine-s0"
    (alone,) = boards_of([csv, home])
    assert alone.entries[0].folder is None
    assert alone.entries[0].row["worst"] == 50.0


def test_a_table_alone_has_its_threat_from_the_benchmark_file_where_there_is_one(tmp_path: Path) -> None:
    home = written(tmp_path / "b", {"mine": Written(stands=[1.0])}, certificate="off")
    write(home)
    csv = home / "leaderboard.csv"
    (tmp_path / "b.yaml").write_text("threat: {norm: l2, eps: 8/255}\n")
    (entry,) = boards_of([csv], tmp_path)[0].entries
    assert (entry.norm, entry.eps) == ("l2", 8 / 255)
    (without,) = boards_of([csv], tmp_path / "b")[0].entries
    assert (without.norm, without.eps) == ("", None)


def test_the_zoo_is_a_source() -> None:
    (board,) = boards_of(["zoo:"])
    assert len(board.entries) >= 12
    trades = next(e for e in board.entries if e.row["run"] == "mnist/lenet-trades")
    assert (trades.norm, trades.eps, trades.row["clean"], trades.methods) == ("linf", 0.2, 96.5, ["trades"])


def test_nothing_to_show_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no benchmark here"):
        boards_of([tmp_path])
