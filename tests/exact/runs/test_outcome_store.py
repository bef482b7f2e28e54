"""Outcomes on their way to the disk: a kill costs one batch, a crash is no verdict, another key is made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.runs import names
from robustbench_sparse.runs.outcome_store import Batch, OutcomeStore, Wanted

N, SIZE = 10, 4
Made = Callable[[Tensor, Tensor, Tensor], pd.DataFrame]


def batches() -> Iterator[Batch]:
    for at in torch.arange(100, 100 + N).split(SIZE):
        yield torch.zeros(len(at), 1, 1, 1), at % 2, at


def rows(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
    assert len(index) == len(x) == len(y)
    return pd.DataFrame({"index": index.tolist(), "value": (index / 3).tolist(), "status": "ok"})


class Dies(Exception):
    """Stands for a kill: nothing in the store handles it."""


def collect(run: Path, made: Made = rows, key: Any = 1, label: str = "fgsm") -> pd.DataFrame:
    wanted = Wanted(label=label, key={"of": key}, facts={"bounded": True})
    return OutcomeStore(run, SIZE, Silent()).collect(wanted, batches, N, made)


def counted(calls: list[int], stop: int = 99, error: type[BaseException] = KeyboardInterrupt) -> Made:
    def made(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
        if len(calls) == stop:
            raise error("now")
        calls.append(int(index[0]))
        return rows(index, x, y)

    return made


def test_a_stored_outcome_is_read_and_not_made_again(tmp_path: Path) -> None:
    calls: list[int] = []
    table = collect(tmp_path, counted(calls))
    assert calls == [100, 104, 108]
    assert table["index"].tolist() == list(range(100, 110))
    again = collect(tmp_path, counted(calls))
    assert len(calls) == 3
    pd.testing.assert_frame_equal(again, table)  # bit for bit, thirds included
    account = read_json(tmp_path / names.account("fgsm"))
    assert {k: account[k] for k in ("label", "status", "reason", "n", "bounded", "flags", "key")} == {
        **{"label": "fgsm", "status": "ok", "reason": "", "n": N, "bounded": True, "flags": {}},
        "key": {"of": 1},
    }


def test_another_key_is_made_anew(tmp_path: Path) -> None:
    collect(tmp_path)
    calls: list[int] = []
    collect(tmp_path, counted(calls), key=2)
    assert len(calls) == 3
    assert OutcomeStore(tmp_path, SIZE, Silent()).is_done("fgsm", {"of": 2})
    assert not OutcomeStore(tmp_path, SIZE, Silent()).is_done("fgsm", {"of": 1})


def test_an_interrupt_costs_one_batch(tmp_path: Path) -> None:
    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, counted(calls, stop=2))
    assert not (tmp_path / names.account("fgsm")).exists()
    more: list[int] = []
    table = collect(tmp_path, counted(more))
    assert more == [108]
    pd.testing.assert_frame_equal(table, collect(tmp_path / "unbroken"), check_dtype=False)
    assert not list(tmp_path.glob(names.parts("*")))


def test_batches_of_another_key_or_size_are_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, counted([], stop=2))
    calls: list[int] = []
    collect(tmp_path, counted(calls), key=2)
    assert len(calls) == 3


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, MemoryError])
def test_a_crash_is_an_account_and_its_batches_stay(tmp_path: Path, error: type[BaseException]) -> None:
    table = collect(tmp_path, counted([], stop=1, error=error))
    account = read_json(tmp_path / names.account("fgsm"))
    assert (account["status"], account["n"], len(table)) == ("crashed", SIZE, SIZE)
    assert account["reason"] == f"{error.__name__}: now"
    assert not OutcomeStore(tmp_path, SIZE, Silent()).is_done("fgsm", {"of": 1})
    calls: list[int] = []
    assert len(collect(tmp_path, counted(calls))) == N
    assert calls == [104, 108]


def test_a_users_error_goes_through(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="now"):
        collect(tmp_path, counted([], stop=0, error=UserError))


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    def made(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
        table = rows(index, x, y)
        table.loc[0, "status"] = "nonfinite"
        return table

    collect(tmp_path, made)
    account = read_json(tmp_path / names.account("fgsm"))
    assert (account["status"], account["flags"]) == ("nonfinite", {"nonfinite": 3})
    assert account["reason"] == "3 of 10 images gave a value that is not finite"


def test_a_table_changed_since_is_made_anew_and_a_damaged_part_is_said(tmp_path: Path) -> None:
    collect(tmp_path)
    (tmp_path / names.verdicts("fgsm")).write_text("index,value\n1,2\n")
    calls: list[int] = []
    collect(tmp_path, counted(calls))
    assert len(calls) == 3
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, counted([], stop=1), label="pgd")
    (tmp_path / names.parts("pgd") / "000000.csv").write_bytes(b"")
    with pytest.raises(UserError, match=r"000000\.csv: damaged, delete it to judge again"):
        collect(tmp_path, label="pgd")


def test_what_a_kill_left_is_tidied(tmp_path: Path) -> None:
    for label in ("fgsm", "pgd"):
        (tmp_path / names.parts(label)).mkdir(parents=True)
    OutcomeStore(tmp_path, SIZE, Silent()).tidy()
    assert not list(tmp_path.glob(names.parts("*")))
