"""A weakened defense is found, other seeds are none: assert_no_regression with the interval over seeds, on trainings.

``python -m benchmarks.regression_seeds`` is the same with ten seeds each and convolutional networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from benchmarks.regression_seeds import EPS, config
from robustbench_sparse import run_benchmark
from robustbench_sparse.testing import NotComparable, assert_no_regression, session


@pytest.fixture(scope="module", autouse=True)
def outside_pytest() -> Iterator[None]:
    """What these tests find is no finding about this project, and has no place in its own summary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "at_work", lambda: None)
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Tables of five seeds, of three others, and of three whose PGD training has half the eps."""
    home, out = tmp_path_factory.mktemp("tables"), {}
    for name, seeds, eps in (
        ("reference", range(5), EPS),
        ("other", range(5, 8), EPS),
        ("weak", range(5, 8), EPS / 2),
    ):
        small = {
            **config(eps, epochs=10),
            "model": {"name": "mlp", "hidden": [64]},
            "evaluation": {"limit": 300},
        }
        small["train"]["optimizer"] = {"name": "adam", "lr": 0.01}
        run_benchmark(small, out=home / name, seeds=list(seeds), variant="seeds", jobs=1)
        out[name] = home / name / "regression@seeds"
    return out


@pytest.fixture(scope="module")
def reference(tables: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "x.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "is_renewed", lambda name: True)
        with pytest.raises(AssertionError, match="2 rows rewritten: pgd_at/clean, pgd_at/worst"):
            assert_no_regression(tables["reference"], path)
    return path


def test_other_seeds_pass_and_half_the_eps_does_not(tables: Mapping[str, Path], reference: Path) -> None:
    assert_no_regression(tables["reference"], reference)
    assert_no_regression(tables["other"], reference, across_seeds=True)
    with pytest.raises(
        AssertionError, match=r"fell below the reference:\npgd_at/worst: .* 5 reference networks"
    ):
        assert_no_regression(tables["weak"], reference, across_seeds=True)
    with pytest.raises(
        NotComparable, match=r"of seeds \[0, 1, 2, 3, 4\], measured \[5, 6, 7\]: across_seeds=True"
    ):
        assert_no_regression(tables["other"], reference)


def test_the_same_from_a_table_as_csv(tables: Mapping[str, Path]) -> None:
    """The seeds of a leaderboard.csv are retrainings, too: no spread.csv is needed for them."""
    table = tables["reference"] / "leaderboard.csv"
    assert_no_regression(tables["reference"], table)
    assert_no_regression(tables["other"], table, across_seeds=True)
    with pytest.raises(AssertionError, match=r"pgd_at +worst .*points for other seeds"):
        assert_no_regression(tables["weak"], table, across_seeds=True)
