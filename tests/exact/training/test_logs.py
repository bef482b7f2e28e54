"""Logs of trainings: whole after every epoch, also where a training is interrupted and goes on."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from robustbench_sparse import run_benchmark
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.training.logs import check_logs, log_of
from tests.helpers.small import small

HISTORY = [
    {"stage": 0, "epoch": 0, "train_loss": 2.0, "rgsm.lam": 0.5},
    {"stage": 0, "epoch": 1, "train_loss": 1.0, "rgsm.lam": math.nan},
    {"stage": 1, "epoch": 0, "train_loss": 0.5, "rgsm.lam": 0.25},
]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Curve -> its points as TensorBoard shows them."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_a_csv_is_whole_after_every_epoch(tmp_path: Path) -> None:
    log = log_of(["csv"], tmp_path, "a-s0")
    for epoch in range(1, 4):
        log.epoch(HISTORY[:epoch])
        assert len(pd.read_csv(tmp_path / "csv/a-s0.csv")) == epoch
    log.close()
    assert pd.read_csv(tmp_path / "csv/a-s0.csv")["train_loss"].tolist() == [2.0, 1.0, 0.5]


def test_curves_go_on_after_an_interrupt(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = log_of(["tensorboard"], tmp_path, "a-s0")
    log.epoch(HISTORY[:1])
    log.epoch(HISTORY[:2])
    log.close()
    log = log_of(["tensorboard"], tmp_path, "a-s0")
    log.epoch([HISTORY[0], {**HISTORY[1], "train_loss": 7.0}])  # the epoch that was lost, trained again
    log.epoch([HISTORY[0], HISTORY[1], HISTORY[2]])
    log.close()
    found = curves(tmp_path / "tensorboard/a-s0")
    assert set(found) == {"train_loss", "rgsm/lam"}
    assert found["train_loss"] == [(1, 2.0), (2, 7.0), (3, 0.5)]
    assert found["rgsm/lam"] == [(1, 0.5), (3, 0.25)], "what is no number is no point"


def test_a_log_that_comes_later_has_the_epochs_before(tmp_path: Path) -> None:
    log = log_of(["tensorboard"], tmp_path, "a-s0")
    pytest.importorskip("tensorboard")
    log.epoch(HISTORY)
    log.close()
    assert curves(tmp_path / "tensorboard/a-s0")["train_loss"] == [(1, 2.0), (2, 1.0), (3, 0.5)]


def test_kinds_are_checked_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"--log: expected csv, tensorboard, got 'tensorbord' \(did you mean"):
        run_benchmark(small(), out=tmp_path, log=["tensorbord"])
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'robustbench_sparse\[tensorboard\]'"):
        check_logs(["csv", "tensorboard"])


def test_a_run_writes_what_its_history_has(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tiny = small(
        attacks={"fgsm": "fgsm"},
        model={"name": "mlp", "hidden": [8]},
        train={"epochs": 2, "batch_size": 64},
        runs={"a": {}},
    )
    run_benchmark(tiny, out=tmp_path, log=["csv", "tensorboard"])
    (history,) = tmp_path.glob("small/runs/*/history.csv")
    run_id, logs = history.parent.name, tmp_path / "small/logs"
    assert (logs / "csv" / f"{run_id}.csv").read_text() == history.read_text()
    wanted, shown = pd.read_csv(history), curves(logs / "tensorboard" / run_id)
    assert [v for _, v in shown["train_loss"]] == pytest.approx(wanted["train_loss"].tolist(), rel=1e-6)
    assert [step for step, _ in shown["val_accuracy"]] == [1, 2]
