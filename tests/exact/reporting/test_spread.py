"""What retrainings differed by, and what `check` allows for it."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import t as student

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.intervals import difference
from robustbench_sparse.reporting.reference import check, rows_of
from robustbench_sparse.reporting.spread import Spread, beside, read

ROOT = Path(__file__).parents[3]


def written(path: Path, rows: list[tuple[str, int, float]]) -> Path:
    """Retrainings of a run: kind, seed and its rate; its sparsity is a tenth of it."""
    table = pd.DataFrame(rows, columns=["kind", "seed", "pgd"])
    table.insert(1, "run", "a")
    table["n"], table["weight_sparsity"], table["status"] = 1000, table["pgd"] / 10, "ok"
    table.to_csv(path, index=False)
    return path


def reference(*rows: tuple[int, float]) -> pd.DataFrame:
    return pd.DataFrame([{"run": "a", "seed": seed, "n": 1000, "pgd": rate} for seed, rate in rows])


def test_deviations_of_machines_and_seeds(tmp_path: Path) -> None:
    rows = [
        ("machine", 0, 40.0),
        ("machine", 0, 42.0),
        ("machine", 0, 44.0),
        ("seed", 1, 50.0),
        ("seed", 2, 60.0),
    ]
    found = read(written(tmp_path / "spread.csv", rows))
    assert found["machine"] == {("a", "pgd"): (2.0, 3), ("a", "weight_sparsity"): (pytest.approx(0.2), 3)}
    assert found["seed"]["a", "pgd"] == (pytest.approx(10.0), 3), (
        "the first machine's own seed is one of them"
    )


def test_two_retrainings_have_no_deviation(tmp_path: Path) -> None:
    rows = [("machine", 0, 40.0), ("machine", 0, 42.0)]
    assert beside(tmp_path / "x.csv", path=written(tmp_path / "spread.csv", rows)) is None


def test_the_allowance_is_that_of_two_draws_or_two_means() -> None:
    found = {("a", "pgd"): (2.0, 5)}
    t = float(student.ppf(0.975, 4))
    machines = Spread(deviations={"machine": found})
    assert machines.allowance("a", "pgd") == pytest.approx(t * 2 * math.sqrt(2))
    assert machines.allowance("b", "pgd") == 0
    seeds = Spread(deviations={"seed": found}, seeds={"a": 5})
    assert seeds.allowance("a", "pgd", 3) == pytest.approx(t * 2 * math.sqrt(1 / 5 + 1 / 3))
    both = Spread(deviations={"seed": found, "machine": {("a", "pgd"): (9.0, 5)}}, seeds={"a": 5})
    assert both.allowance("a", "pgd") == pytest.approx(t * 9 * math.sqrt(2)), "the larger of the two"
    assert (machines.loose(), both.loose()) == ([], [f"a pgd by {t * 9 * math.sqrt(2):.0f} points"])


def test_the_joint_interval_is_widened_by_it() -> None:
    spread = Spread(deviations={"machine": {("a", "pgd"): (2.0, 5)}})
    allowed = spread.allowance("a", "pgd")

    def fell(rate: float) -> bool:
        _, high = (100 * v for v in difference(10 * rate, 1000, 400, 1000))
        gap = rate - 40
        return gap + math.hypot(high - gap, allowed) < 0

    for rate in (38.0, 33.0, 31.0, 29.0, 20.0):
        found = check(reference((0, rate)), reference((0, 40.0)), spread=spread)
        assert [d.kind for d in found] == ["fell"] * fell(rate)
    (better,) = check(reference((0, 60.0)), reference((0, 40.0)), spread=spread)
    assert (better.kind, "points for other machines" in better.problem) == ("improved", True)
    assert check(reference((0, 33.0)), reference((0, 40.0))) != [], "without it that is a fall"


def test_other_seeds_are_compared_by_their_means(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    reference((0, 38.0), (1, 40.0), (2, 42.0)).to_csv(path, index=False)
    spread = beside(path, seeds=True)
    assert spread is not None
    assert spread.over_seeds
    assert rows_of(path, across_seeds=True) == ["a"]
    assert check(reference((7, 35.0)), path, spread=spread) == []
    assert [d.kind for d in check(reference((7, 20.0)), path, spread=spread)] == ["fell"]
    assert [d.problem for d in check(reference((7, 35.0)), path)] == ["the row is gone"] * 3
    reference((0, 40.0)).to_csv(path, index=False)
    with pytest.raises(UserError, match="no spread over seeds: expected 3 seeds of a run"):
        beside(path, seeds=True)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "spread.csv"
    for text, message in (
        ("run,seed,pgd\na,0,40\n", "expected a column 'kind'"),
        ("kind,run,seed,pgd\nmoon,a,0,40\n", "column 'kind': expected machine or seed, got 'moon'"),
        ("kind,run,seed,pgd\nmachine,a,0,140\n", "percentages in"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read(path)


def test_the_quickstart_holds_on_every_machine_that_was_tried() -> None:
    """The stored retrainings themselves: none is a fall from the reference, once what they show is allowed for."""
    home = ROOT / "results/reference/quickstart"
    table, spread = pd.read_csv(home / "spread.csv"), beside(home / "leaderboard.csv")
    assert spread is not None
    wanted = pd.read_csv(home / "leaderboard.csv").drop(columns="worst")  # theirs knows no certificate
    machines = table[table["kind"] == "machine"]
    assert machines["change"].nunique() >= 5
    assert machines["processor"].nunique() >= 2
    for _, one in machines.groupby(["processor", "change"]):
        assert [(d.run, d.column) for d in check(one, wanted, spread=spread) if d.kind == "fell"] == []
