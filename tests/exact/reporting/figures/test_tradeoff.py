"""The trade-off of two columns: where the points lie, how long their intervals are, which are on the front."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.intervals import mean_interval
from robustbench_sparse.reporting.figures.making import make
from robustbench_sparse.reporting.figures.placing import offsets
from robustbench_sparse.reporting.figures.tradeoff import TradeOff, points


def row(run: str, clean: float, worst: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    rates = {"clean": clean, "worst": worst}
    bounds = {f"{k}{end}": v + by for k, v in rates.items() for end, by in (("_lo", -1.0), ("_hi", 2.0))}
    facts = {"benchmark": "b", "dataset": "d", "n": 100, "status": "ok", "verdict": "believable"}
    return {**facts, "run": run, "seed": seed, **rates, **bounds, "nonzero_parameters": 10, **more}


def front(table: pd.DataFrame, x: str = "clean", y: str = "worst") -> list[str]:
    found = points(table, x, y)
    return list(found.loc[found["front"], "run"])


def test_one_seed_has_its_own_interval() -> None:
    (point,) = points(pd.DataFrame([row("a", 90, 40)]), "clean", "worst").to_dict("records")
    assert (point["x"], point["x_lo"], point["x_hi"]) == (90, 89, 92)
    assert (point["y"], point["y_lo"], point["y_hi"]) == (40, 39, 42)


def test_several_seeds_have_the_wider_one() -> None:
    table = pd.DataFrame([row("a", 90, value, seed) for seed, value in enumerate((30, 40, 50))])
    (point,) = points(table, "clean", "worst").to_dict("records")
    low, high = mean_interval([30, 40, 50])
    assert (point["y"], point["y_lo"], point["y_hi"]) == (40, low, high)
    assert (point["x_lo"], point["x_hi"]) == (89, 92)  # all seeds alike: a seed's own


def test_the_front_has_what_nothing_beats() -> None:
    table = pd.DataFrame(
        [row("a", 90, 40), row("b", 80, 50), row("c", 80, 45), row("d", 70, 50), row("e", 90, 40)]
    )
    assert front(table) == ["a", "b", "e"]


def test_fewer_parameters_are_better() -> None:
    table = pd.DataFrame(
        [row("small", 90, 40, nonzero_parameters=5), row("large", 90, 40), row("best", 90, 60)]
    )
    assert front(table, "nonzero_parameters") == ["small", "best"]


def test_a_refuted_row_is_on_no_front_and_keeps_none_off_it() -> None:
    table = pd.DataFrame([row("fake", 99, 99, verdict="refuted"), row("true", 90, 40)])
    assert front(table) == ["true"]
    assert points(table, "clean", "worst")["refuted"].tolist() == [True, False]


def test_dense_twins_are_known_by_their_labels() -> None:
    table = pd.DataFrame(
        [row("pgd_at+dense_twin_90", 9, 4), row("dense_twin_80", 9, 4), row("fgsm+twin", 9, 4)]
    )
    assert points(table, "clean", "worst")["twin"].tolist() == [True, True, False]


def test_a_dense_twin_belongs_to_a_row() -> None:
    table = pd.DataFrame(
        [row(name, 9, 4) for name in ("pruned", "dense_twin_pruned", "thin", "dense_twin_90")]
    )
    found = points(table, "clean", "worst", ["thin=pruned"]).set_index("run")
    assert found["of"].to_dict() == {
        "pruned": "",
        "dense_twin_pruned": "pruned",
        "thin": "pruned",
        "dense_twin_90": "",
    }
    assert found["twin"].tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match="twin: expected TWIN=ROW"):
        TradeOff(twin=("thin",))


def test_a_row_with_a_gap_in_one_seed_is_no_point() -> None:
    table = pd.DataFrame([row("a", 90, 40), row("b", 80, 50), row("b", 80, float("nan"), 1)])
    assert points(table, "clean", "worst")["run"].tolist() == ["a"]


def test_shares_of_zeros_have_short_names() -> None:
    table = pd.DataFrame([row("a", 90, 40, weight_sparsity=90.0), row("b", 90, 40, weight_sparsity=95.0)])
    assert points(table, "zero_weights", "worst")["x"].tolist() == [90, 95]
    assert front(table, "zero_weights") == ["b"]


def test_labels_lie_on_no_other_label_and_no_point() -> None:
    places = np.array([(50.0 + 4 * (i % 3), 50.0 + 4 * (i // 3)) for i in range(9)])
    size, room = (9.0, 7.0), (200.0, 150.0)
    middles = places + offsets(places, [size] * 9, room)
    for i, middle in enumerate(middles):
        assert not (np.abs(places - middle) < np.array(size) / 2).all(axis=1).any()
        assert not (np.abs(np.delete(middles, i, 0) - middle) < size).all(axis=1).any()
        assert (middle > np.array(size) / 2).all()
        assert (middle + np.array(size) / 2 < room).all()


def test_what_a_table_has_not_got() -> None:
    table = pd.DataFrame([row("a", 90, 40)])
    with pytest.raises(UserError, match=r"clena: no column of numbers in this table .did you mean 'clean'"):
        points(table, "clena", "worst")
    with pytest.raises(UserError, match="no row has both clean and pgd"):
        points(table.assign(pgd=float("nan")), "clean", "pgd")
    with pytest.raises(ValueError, match="x: expected another column than y"):
        TradeOff(x="worst")
    with pytest.raises(ValueError, match="y: expected one column"):
        TradeOff(y=("worst", "clean"))


def test_written_tables_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = pd.DataFrame([row("a", 90, 40), row("b", 80, 50), row("b", 82, 52, 1)])
    table.to_csv(tmp_path / "leaderboard.csv", index=False)
    assert make("tradeoff", [tmp_path], tmp_path / "out.svg") == 2
    text = (tmp_path / "out.svg").read_text()
    assert all(f"<!-- {words} -->" in text for words in ("1  a", "2  b", "Pareto front", "worst, percent"))
    assert make("tradeoff", [tmp_path], tmp_path / "one.svg", only=["a"]) == 1
    assert make("tradeoff", [tmp_path], tmp_path / "twin.svg", {"twin": ("b=a",)}) == 2
    assert "<!-- a dense twin and its row -->" in (tmp_path / "twin.svg").read_text()
    with pytest.raises(UserError, match="--twin c=a: no such row"):
        make("tradeoff", [tmp_path], tmp_path / "none.svg", {"twin": ("c=a",)})
    with pytest.raises(UserError, match="expected 1 to 8 tables, got 9; name fewer"):
        make("tradeoff", [tmp_path] * 9, tmp_path / "many.svg")


def test_a_long_table_has_room_for_its_list(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = [f"pgd_at+some_method_{i}" for i in range(90)]
    gap = {"worst": float("nan")}
    table = pd.DataFrame(
        [row(n, 50 + i / 3, 90 - i) | (gap if i % 3 == 0 else {}) for i, n in enumerate(names)]
    )
    table.to_csv(tmp_path / "leaderboard.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit is one
        make("tradeoff", [tmp_path], tmp_path / "long.svg")
    assert "<!-- 60  pgd_at+some_method_89 -->" in (tmp_path / "long.svg").read_text()
