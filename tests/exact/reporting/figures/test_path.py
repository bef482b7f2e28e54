"""Columns of the leaderboard against a setting: which runs make a line, and where its points lie."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from robustbench_sparse.config.load import resolve
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import write_json
from robustbench_sparse.models.build import build_network
from robustbench_sparse.reporting.figures.path import SettingPath
from robustbench_sparse.reporting.figures.settings import differing, find_setting, settings_of_run
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.seals import seal
from tests.helpers.fabricated_runs import benchmark_of, fabricated, plan_of
from tests.helpers.small import small

LAMS, HIDDEN = (0.1, 0.2, 0.4), (4, 8)


def train(lam: float) -> dict[str, Any]:
    optimizer = {"name": "linbreg", "lr": 0.1, "lam": lam}
    return {"epochs": 1, "optimizer": optimizer}


def runs_of(folder: Path) -> list[RunFolder]:
    """Runs with every lam, width and two seeds, of known shares of zeros and right images."""
    runs, rows = [], {}
    for hidden in HIDDEN:
        for lam in LAMS:
            label = f"w{hidden}_{lam:g}"
            row = {"model": {"name": "mlp", "hidden": [hidden]}, "train": train(lam)}
            rows[label] = row
            plan = plan_of(runs={label: row}, seeds=[0, 1], attacks={})
            network = build_network(plan.runs[0].model, [], 1, 8, 10, seed=0)
            for seed in (0, 1):
                state = {k: torch.ones_like(v) for k, v in network.state_dict().items()}
                first = next(k for k in state if k.endswith("weight"))
                # Of 64 inputs, 10 more each time lam doubles; one more for the second seed.
                state[first][:, : 10 + 10 * LAMS.index(lam) + seed] = 0
                run = fabricated(folder, state, plan=plan, seed=seed)
                network.load_state_dict(state)
                run.count(network, 1, 8)
                judged(run, right=5 + LAMS.index(lam))
                runs.append(run)
    whole = resolve(small(runs=rows, seeds=[0, 1], attacks={}))
    benchmark_of(folder, whole, runs)
    return runs


def judged(run: RunFolder, right: int) -> None:
    """Write verdicts on ten images."""
    (run.path / "outcomes").mkdir()
    write_json(
        run.path / "outcomes" / "clean.json",
        {"status": "ok", "reason": "", "n": 10, "seconds": 1.0, "key": {}},
    )
    table = pd.DataFrame({"index": range(10), "label": 0, "correct": [float(i < right) for i in range(10)]})
    table.to_csv(run.path / "outcomes" / "clean.csv", index=False)
    seal(run.path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    return runs_of(tmp_path_factory.mktemp("results") / "small")


def share(hidden: int, inputs: float) -> float:
    """Percent of zeros in a network of 64, hidden and 10 neurons, of whose inputs so many are not read."""
    return 100 * inputs / (64 + 10)


def test_a_line_is_made_of_runs_that_differ_in_nothing_else(runs: list[RunFolder]) -> None:
    figure = Figure()
    SettingPath(x="lam", y=("weight_sparsity", "clean")).draw(figure, runs)
    left, right = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("train.optimizer.lam", "weight sparsity in %")
    assert right.get_ylabel() == "clean accuracy in %"
    lines = [box.lines[0] for box in left.containers]
    assert [box.get_label() for box in left.containers] == ["model.hidden [4]", "model.hidden [8]"]
    for line, hidden in zip(lines, HIDDEN, strict=True):
        assert line.get_xdata().tolist() == [*LAMS]
        expected = [share(hidden, inputs) for inputs in (10.5, 20.5, 30.5)]
        assert line.get_ydata().tolist() == pytest.approx(expected)
    (bars,) = left.containers[0].lines[2]
    spread = (share(4, 11) - share(4, 10)) / math.sqrt(2)  # of two values, ddof = 1
    low, high = bars.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * spread)
    assert right.containers[0].lines[0].get_ydata().tolist() == pytest.approx([50, 60, 70])


def test_the_scale_may_be_logarithmic(runs: list[RunFolder]) -> None:
    figure = Figure()
    SettingPath(x="train.optimizer.lam", log=True).draw(figure, runs)
    assert figure.axes[0].get_xscale() == "log"
    with pytest.raises(UserError, match=r"--log: expected values > 0 of train\.optimizer\.momentum, got 0"):
        SettingPath(x="momentum", log=True).draw(Figure(), runs)


def test_settings_by_key_path(runs: list[RunFolder]) -> None:
    settings = [settings_of_run(run) for run in runs]
    assert settings[0]["train.optimizer.lam"] == 0.1
    assert settings[0]["threat.eps"] == 0.1
    assert find_setting("optimizer.lam", settings, "--x") == "train.optimizer.lam"
    with pytest.raises(UserError, match=r"--x lamb: no setting of these runs .*did you mean"):
        find_setting("lamb", settings, "--x")
    with pytest.raises(UserError, match=r"--x name: expected one of .*model\.name"):
        find_setting("name", settings, "--x")


def test_a_defense_stands_under_its_name_and_stages_under_their_number(tmp_path: Path) -> None:
    defenses = [{"name": "rvsm", "lam": 0.5, "beta": 1.0}, {"name": "hold_zeros"}, {"name": "hold_zeros"}]
    stages = {"stages": [{"epochs": 1}, {"epochs": 2}]}
    plan = plan_of(runs={"r": {"defenses": defenses, "train": stages}})
    settings = settings_of_run(fabricated(tmp_path, {"fc.weight": torch.ones(2, 2)}, plan=plan))
    assert settings["defenses.rvsm.lam"] == 0.5
    assert "defenses.hold_zeros2.threshold" in settings
    assert settings["train.stages.1.epochs"] == 2


def test_groups_are_told_apart_by_plugins_first() -> None:
    groups: list[dict[str, Any]] = [
        {"model.name": "a", "model.depth": 8}, {"model.name": "b", "model.depth": 20}
    ]  # fmt: skip
    assert differing(groups) == ["a", "b"]
    assert differing([{"model.name": "a", "d": 1}, {"model.name": "a", "d": 2}]) == ["d 1", "d 2"]
    assert differing([{"d": 1}]) == [""]


@pytest.mark.parametrize(
    ("made", "match"),
    [
        ({"y": ("sparsity",)}, "--y sparsity: no such column"),
        ({"y": ("status",)}, "--y status: no numbers in this column"),
        ({"y": ("channel_sparsity",)}, "--y channel_sparsity: .* has no value: ok"),
        ({"x": "train.optimizer.linear"}, r"--x train\.optimizer\.linear"),
    ],
)
def test_what_is_not_there(runs: list[RunFolder], made: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        SettingPath(**{"x": "lam", **made}).draw(Figure(), runs)


def test_a_setting_is_needed() -> None:
    with pytest.raises(ValueError, match="x: expected a setting's key path"):
        SettingPath()
