"""Restoration networks from a config to a table: trained, judged, attacked, killed and gone on."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.config.load import resolve
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting import history
from robustbench_sparse.reporting.comparison import compare_runs
from robustbench_sparse.reporting.curve import curve
from robustbench_sparse.reporting.leaderboard import aggregate
from robustbench_sparse.reporting.tables import columns_of, title_of
from robustbench_sparse.runs.folder import RunFolder

ROWS: dict[str, Any] = {"name": "group_lasso", "group": "row", "weighted": True}
CONFIG: dict[str, Any] = {
    "name": "restored",
    "task": {"name": "restore", "noise": 0.2},
    "data": "digits",
    "validation": 100,
    "train_limit": 400,
    "threat": {"norm": "linf", "eps": 0.05},
    "attacks": {
        "pgd": {"name": "pgd_mse", "steps": 4},
        "far": {"name": "pgd_mse", "steps": 4, "threat": {"eps": 0.5}},
    },
    "evaluation": {"limit": 64, "batch_size": 24},
    "seeds": [0, 1],
    "train": {
        "epochs": 6,
        "batch_size": 32,
        "optimizer": {
            "name": "adabreg",
            "lr": 0.01,
            "lam": 0.02,
            "linear": ROWS,
            "groups": [{"match": "*skip", "regulariser": "l1", "lam": 0.01}],
        },
    },
    "runs": {
        "input": {"model": "identity"},
        "residual": {"model": {"name": "dense_residual", "layers": 3, "width": 32}},
        "rows": {
            "model": {"name": "dense_residual", "layers": 3},
            "defenses": [{"name": "sparse_init", "density": 0.3, "linear": "row", "bias": "positive"}],
            "train": {"optimizer": {"lam": 0.1, "groups": [{"match": "*skip", "regulariser": "zero"}]}},
        },
    },
    "published": {"values": {"rows": {"mse": 0.01, "ssim": 0.9}}},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("restored")
    return out, run_benchmark(CONFIG, out=out)


def folder(out: Path, run: str, seed: int = 0) -> Path:
    (path,) = (out / "restored" / "runs").glob(f"{run}-s{seed}-*")
    return path


def test_every_row_has_errors_with_their_intervals(done: tuple[Path, pd.DataFrame]) -> None:
    _, table = done
    assert list(table["status"]) == ["ok"] * 6
    assert list(table["verdict"]) == [""] * 6
    for name in ("mse", "psnr", "pgd_mse", "far_mse", "worst_mse"):
        assert (table[f"{name}_lo"] < table[name]).all()
        assert (table[name] < table[f"{name}_hi"]).all()
    assert table["ssim"].isna().all()  # an 8 x 8 image is smaller than the window
    assert (table["pgd_mse"] > table["mse"]).all()
    assert (table["far_mse"] > table["pgd_mse"]).all()
    # The far attack's inputs lie outside the benchmark's ball: only the other one counts.
    assert (table["worst_mse"] == table["pgd_mse"]).all()
    assert "clean" not in table.columns
    assert table["published_mse"].dropna().tolist() == [0.01, 0.01]


def test_the_input_as_it_is_has_the_errors_of_the_noise(done: tuple[Path, pd.DataFrame]) -> None:
    out, table = done
    mine = table[table["run"] == "input"]
    assert mine["mse"].nunique() == 1, "the same inputs for every seed"
    # 64 images of 64 pixels: the variance's standard error is 0.04 sqrt(2 / 4096).
    assert mine["mse"].iloc[0] == pytest.approx(0.04, abs=4 * 0.04 * math.sqrt(2 / 4096))
    records = pd.read_csv(folder(out, "input") / "outcomes/clean.csv")
    assert records["psnr"].to_numpy() == pytest.approx(-10 * records["mse"].map(math.log10).to_numpy())
    assert (mine["parameters"] == 0).all()


def test_networks_learn_and_the_rows_regularised_are_zero(done: tuple[Path, pd.DataFrame]) -> None:
    _, table = done
    best = table.groupby("run")["mse"].max()
    assert best["residual"] < best["input"]
    assert best["rows"] < 0.2
    assert (table[table["run"] == "rows"]["row_sparsity"] > 0).all()


def test_skips_held_at_zero_stay_zero_and_others_grow(done: tuple[Path, pd.DataFrame]) -> None:
    out, _ = done
    for run, grown in (("rows", False), ("residual", True)):
        network = RunFolder.at(folder(out, run)).network(1, 8, 10)
        skips = torch.cat([p.flatten() for name, p in network.named_parameters() if name.endswith("skip")])
        assert bool(skips.any()) == grown


def test_the_history_names_the_error(done: tuple[Path, pd.DataFrame]) -> None:
    out, _ = done
    history = pd.read_csv(folder(out, "residual") / "history.csv")
    assert {"train_mse", "val_mse", "row_sparsity"} <= set(history.columns)
    assert "val_accuracy" not in history.columns
    chosen = RunFolder.at(folder(out, "residual")).training()
    assert chosen is not None
    assert chosen["selected"]["epoch"] == history["val_mse"].idxmin()


def test_the_history_is_shown_by_its_errors(done: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    out, _ = done
    over_seeds = history.over_seeds(history.collect(out / "restored"))
    assert set(over_seeds["run"]) == {"residual", "rows"}, "the identity has no epochs"
    text = history.text_of(over_seeds)
    assert "val_mse" in text
    assert "accuracy" not in text
    history.plot(over_seeds, tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 10_000


def test_what_is_about_classifiers_says_so(done: tuple[Path, pd.DataFrame]) -> None:
    out, _ = done
    run = folder(out, "residual")
    with pytest.raises(UserError, match="expected a run of the task classify, got restore"):
        curve(run, "pgd")
    with pytest.raises(UserError, match="expected a run of the task classify, got restore"):
        compare_runs(run, folder(out, "rows"))


def test_tables_say_what_the_numbers_are(done: tuple[Path, pd.DataFrame]) -> None:
    _, table = done
    assert "squared error" in title_of(table)[1]
    over_seeds = aggregate(table)
    assert over_seeds["mse_mean"].notna().all()
    titles = [c.title for c in columns_of(over_seeds)]
    assert "mse" in titles
    assert "ssim" in titles  # its published value
    assert "verdict" not in titles


def test_again_nothing_is_done_and_a_killed_training_ends_the_same(
    done: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = done
    monkeypatch.setattr(
        "robustbench_sparse.training.trainer.Trainer.train", lambda self: pytest.fail("trained")
    )
    again = run_benchmark(CONFIG, out=out)
    pd.testing.assert_frame_equal(again, table)
    monkeypatch.undo()

    from robustbench_sparse.training import trainer

    real, calls = trainer.Trainer._epoch, 0

    def killed(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    config = {**copy.deepcopy(CONFIG), "seeds": [0]}
    monkeypatch.setattr(trainer.Trainer, "_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(config, out=tmp_path, only=["residual"])
    monkeypatch.undo()
    resumed = run_benchmark(config, out=tmp_path, only=["residual"])
    mine = resumed[resumed["run"] == "residual"].iloc[0]
    unbroken = table[(table["run"] == "residual") & (table["seed"] == 0)].iloc[0]
    for column in ("mse", "pgd_mse", "weight_sparsity"):
        assert mine[column] == unbroken[column]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("task=restor", "task.name: unknown task 'restor' (did you mean 'restore'?)"),
        ("task.noise=-0.1", "task.noise: expected a finite number >= 0, got -0.1"),
        ("task.blur_size=4", "task.blur_size: expected an odd integer >= 1, got 4"),
        ("task.sigma=4", "task.sigma: unknown setting of task 'restore'"),
        ("attacks.pgd=fgsm", "attacks.pgd: expected an attack for the task restore, got fgsm"),
        ("suite=quick", "suite: its attacks are on classifiers"),
        ("evaluation.certificate=quick", "evaluation.certificate: its checks are of classifiers"),
        (
            "runs.residual.model=lenet",
            "runs.residual.model: expected a network for the task restore, got lenet",
        ),
        (
            "runs.residual.defenses=[pgd_at]",
            "runs.residual.defenses.0: expected a defense for the task restore",
        ),
        ("train.selection=adversarial", "train.selection: expected best or last with the task restore"),
        ("published.values.rows.clean=1", "published.values.rows.clean: no column of this name"),
        ("train.optimizer.groups.0.match='*skp'", "groups: 0.match: '*skp' matches no parameter"),
        (
            "train.optimizer.groups.0.lam=-1",
            "train.optimizer.groups: 0.lam: expected a finite number >= 0, got -1",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(
    change: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        run_benchmark(CONFIG, out=tmp_path / "out", changes=[change])
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_restoration_attack_does_not_attack_classifiers() -> None:
    raw = {**copy.deepcopy(CONFIG), "task": "classify", "published": {}, "runs": {"plain": {"model": "mlp"}}}
    with pytest.raises(
        UserError, match=r"attacks\.pgd: expected an attack for the task classify, got pgd_mse"
    ):
        resolve(raw)


def test_a_crash_leaves_the_row_without_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attacks import PGDMse

    def crash(*_: object) -> torch.Tensor:
        raise RuntimeError("out of order")

    monkeypatch.setattr(PGDMse, "run", crash)
    table = run_benchmark({**CONFIG, "seeds": [0]}, out=tmp_path, only=["input"])
    row = table[table["run"] == "input"].iloc[0]
    assert math.isnan(row["pgd_mse"])
    assert math.isnan(row["worst_mse"])
    assert "crashed: RuntimeError: out of order" in row["status"]
    assert row["mse"] > 0
