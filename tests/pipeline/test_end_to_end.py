"""From a config to the table and back: what a user does with the whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attacks import FGSM
from defenses import prunable
from defenses.base import Defense, Step
from robustbench_sparse import evaluate, run_benchmark
from robustbench_sparse.config.load import resolve
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.leaderboard import tabulate
from robustbench_sparse.reporting.reference import check
from tests.helpers.small import small

RATES = ["clean", "fgsm", "pgd", "worst"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    run_benchmark(small(), out=out)
    return out / "small"


def test_the_table_is_the_fold_of_the_folder(results: Path) -> None:
    table = tabulate(results)
    assert table["run"].tolist() == ["natural", "all"]
    assert table["status"].tolist() == ["ok", "ok"]
    assert (table["n"] == 96).all()
    written = pd.read_csv(results / "leaderboard.csv")
    assert written.columns.tolist() == table.columns.tolist()
    for column in RATES:
        outcome = results / "runs" / table["run_id"][0] / "outcomes"
        assert (table[f"{column}_lo"] <= table[column]).all()
        assert (table[column] <= table[f"{column}_hi"]).all()
        assert written[column].tolist() == pytest.approx(table[column].tolist(), abs=1e-4)
    by_hand = 100 * pd.read_csv(outcome / "pgd.csv")["adv_correct"].mean()
    assert table["pgd"][0] == pytest.approx(by_hand)
    assert (table["worst"] <= table[["clean", "fgsm", "pgd"]].min(axis=1) + 1e-9).all()


def test_natural_training_learns_and_the_attack_bites(results: Path) -> None:
    natural = tabulate(results).set_index("run").loc["natural"]
    assert natural["clean"] > 30, "chance is 10"
    assert natural["pgd"] < natural["clean"] - 20


def test_sparsity_is_that_of_the_saved_file(tmp_path: Path) -> None:
    """Zeros put into the file by hand are counted; a file that was changed is refused by the judge."""
    raw = small(runs={"natural": {}}, attacks={})
    raw["train"]["epochs"] = 1
    table = run_benchmark(raw, out=tmp_path)
    assert table["weight_sparsity"][0] == 0
    run = tmp_path / "small" / "runs" / table["run_id"][0]
    weights = load_file(run / "model.safetensors")
    layers = prunable(resolve(raw).runs[0].model.build(1, 8, 10))
    total = sum(w.numel() for w in layers.values())
    zeroed = (
        weights["stem.weight"].numel() if "stem.weight" in weights else weights[next(iter(layers))].numel()
    )
    name = "stem.weight" if "stem.weight" in weights else next(iter(layers))
    save_file(weights | {name: torch.zeros_like(weights[name])}, tmp_path / "zeroed.safetensors")
    table = evaluate(
        f"{__name__}:same_network", weights=tmp_path / "zeroed.safetensors", dataset="digits", limit=8,
        attacks=["fgsm"],
    )  # fmt: skip
    assert table["weight_sparsity"][0] == pytest.approx(100 * zeroed / total)


def same_network() -> nn.Module:
    """The architecture of the small benchmark."""
    return resolve(small()).runs[0].model.build(1, 8, 10)


def test_evaluating_a_run_gives_the_leaderboards_numbers(results: Path) -> None:
    """The same images, weights and threat: deterministic attacks give the same verdicts."""
    row = tabulate(results).set_index("run").loc["natural"]
    table = evaluate(results / "runs" / row["run_id"], attacks={"fgsm": "fgsm"}, limit=96)
    assert table["clean"][0] == pytest.approx(row["clean"])
    assert table["fgsm"][0] == pytest.approx(row["fgsm"])
    assert table["channel_sparsity"][0] == pytest.approx(row["channel_sparsity"])


def test_a_users_own_network_goes_through_the_standard_suite(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    table = evaluate(model, dataset="digits", eps=0.3, limit=40, out=tmp_path, expect_clean=0)
    assert table["status"][0].startswith("ok")
    assert table["worst"][0] <= table["clean"][0]
    assert {"fgsm", "ifgsm20"} <= set(table.columns)
    second = evaluate(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        dataset="digits",
        eps=0.3,
        limit=40,
        out=tmp_path,
        expect_clean=0,
    )
    assert len(second) == 2, "evaluations in one folder are rows of one table"


def test_check_passes_against_itself_and_names_what_fell(results: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference.csv"
    table = pd.read_csv(results / "leaderboard.csv")
    table.to_csv(reference, index=False)
    assert check(results, reference) == []
    table.loc[table["run"] == "natural", "clean"] = 100.0
    table.loc[table["run"] == "natural", "n"] = 10_000
    table.to_csv(reference, index=False)
    problems = check(results, reference)
    assert [(p.run.split()[0], p.column) for p in problems] == [("natural", "clean")]


@dataclass(frozen=True, kw_only=True)
class Halve(FGSM):
    """A user's own attack."""

    share: float = 0.5

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat, random) -> Tensor:  # type: ignore[no-untyped-def]
        return x + self.share * (super().run(model, x, y, threat, random) - x)


@dataclass(frozen=True, kw_only=True)
class MagnitudeMask(Defense):
    """A user's own defense: zero the smallest half of the weights at the start of its stage, and hold them."""

    def begin(self, s: Step) -> None:
        self.memory["mask"] = {
            name: (w.abs() > w.abs().median()).float() for name, w in prunable(s.model).items()
        }
        self._apply(s)

    def after_step(self, s: Step) -> None:
        self._apply(s)

    def _apply(self, s: Step) -> None:
        with torch.no_grad():
            for name, w in prunable(s.model).items():
                w.mul_(self.memory["mask"][name])


def test_plug_ins_of_ones_own_and_two_stages(tmp_path: Path) -> None:
    """Train, then prune and retrain; an attack and a defense named by their import path."""
    raw = small(attacks={"own": {"name": f"{__name__}:Halve", "share": 0.25}})
    raw["train"]["stages"] = [{"epochs": 2}, {"epochs": 2, "selection": "last"}]
    raw["runs"] = {"pruned": {"defenses": [{"name": f"{__name__}:MagnitudeMask", "stages": [1]}]}}
    table = run_benchmark(raw, out=tmp_path)
    assert table["status"][0] == "ok"
    assert table["weight_sparsity"][0] == pytest.approx(50, abs=1)
    own = pd.read_csv(next(tmp_path.rglob("own.csv")))
    assert own.loc[own["linf"] > 0, "linf"].max() == pytest.approx(0.025, abs=1e-6)
    history = pd.read_csv(next(tmp_path.rglob("history.csv")))
    assert history["stage"].tolist() == [0, 0, 1, 1]
    assert history["weight_sparsity"].iloc[1] == 0


def test_a_diverged_run_is_a_row_that_says_so(tmp_path: Path) -> None:
    raw = small(runs={"wild": {"train": {"optimizer": {"lr": 1e6}}}, "natural": {}})
    raw["train"]["epochs"] = 1
    table = run_benchmark(raw, out=tmp_path).set_index("run")
    assert table.loc["wild", "status"].startswith("diverged")
    assert table.loc["wild", RATES].isna().all()
    assert table.loc["natural", "status"] == "ok", "the other runs go on"


def test_a_changed_attack_is_judged_again_without_training_again(results: Path, tmp_path: Path) -> None:
    raw = small(runs={"natural": {}})
    first = run_benchmark(raw, out=tmp_path)
    trained = next(tmp_path.rglob("model.safetensors")).stat().st_mtime_ns
    raw["attacks"] = {
        "fgsm": "fgsm",
        "pgd": {"name": "pgd", "steps": 1, "step_size": 1e-6, "random_start": False},
    }
    with pytest.raises(
        UserError, match=r"small: holds the table of another config \(attacks\.pgd\.steps: 4 there, 1"
    ):
        run_benchmark(raw, out=tmp_path)
    second = run_benchmark(raw, out=tmp_path, replace=True)
    assert next(tmp_path.rglob("model.safetensors")).stat().st_mtime_ns == trained
    assert second["fgsm"][0] == first["fgsm"][0]
    assert second["pgd"][0] > first["pgd"][0]


def test_compare_counts_the_flips_of_two_runs(results: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from robustbench_sparse.cli.main import app
    from robustbench_sparse.reporting.comparison import compare_runs

    table = tabulate(results)
    one, two = (results / "runs" / run_id for run_id in table["run_id"])
    found = compare_runs(one, two).set_index("attack")
    assert found.index.tolist() == RATES
    for label in RATES:
        row = found.loc[label]
        assert row["first"] == pytest.approx(table[label][0])
        assert row["second"] == pytest.approx(table[label][1])
        assert row["difference"] == pytest.approx(table[label][0] - table[label][1])
        assert row["low"] <= row["difference"] <= row["high"]
        assert len(row["flips"].split()) == row["lost"] + row["won"]
    swapped = compare_runs(two, one, "clean").iloc[0]
    assert (swapped["lost"], swapped["won"]) == (found.loc["clean", "won"], found.loc["clean", "lost"])
    clean = [pd.read_csv(run / "outcomes" / "clean.csv") for run in (one, two)]
    by_hand = clean[0]["index"][(clean[0]["correct"] > 0.5) & (clean[1]["correct"] <= 0.5)]
    assert found.loc["clean", "flips"].split()[: len(by_hand)] == [f"-{i}" for i in by_hand]

    done = CliRunner().invoke(app, ["compare", str(one), str(two), "--attack", "worst"])
    assert done.exit_code == 0, done.output
    assert "worst" in done.output
    assert "interval" in done.output
    for arguments, problem in (
        (["compare", str(one), str(tmp_path)], "not a run's folder"),
        (["compare", str(one), str(two), "--attack", "wosrt"], "did you mean"),
        (["compare", str(one), str(two), "--format", "latex"], "expected table, csv"),
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2
        assert problem in done.output
