"""Results of an earlier release, in ``earlier/``: folders written then are read now, with the numbers of then.

``earlier/tiny`` was written at commit 4f04e12, before the package had rooms: two rows, two seeds, three attacks, a
quick certificate, one network trained in bfloat16, one whose compilation was left to a measurement.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from robustbench_sparse.data.digits import Digits
from robustbench_sparse.reporting.explain import explain
from robustbench_sparse.reporting.leaderboard import aggregate, tabulate
from robustbench_sparse.reporting.tables import to_csv
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import read_manifest

TINY = Path(__file__).parent / "earlier" / "tiny"
RUNS = sorted((TINY / "runs").iterdir())
SINCE = ["precision", "worst_n", "rank_high", "detectable", "protocol"]  # columns that have come since
OF_SEEDS = ["rank_seeds_high", "detectable_seeds"]  # these too, in the table of every seed


def test_the_leaderboard_is_the_one_of_then() -> None:
    table = tabulate(TINY)
    assert table["status"].tolist() == ["ok"] * 4
    assert to_csv(table.drop(columns=[*SINCE, *OF_SEEDS])) == (TINY / "leaderboard.csv").read_text()
    seeds = aggregate(table).drop(columns=SINCE)
    assert to_csv(seeds) == (TINY / "leaderboard_seeds.csv").read_text()


def test_what_its_ranks_rest_on_is_known() -> None:
    table = tabulate(TINY)
    assert set(table["protocol"]) == {"custom-ecf3f74e+quick-1"}
    assert table[["rank", "rank_high"]].to_numpy().tolist() == [[1, 2]] * 4
    assert table["worst_n"].tolist() == [30] * 4


def test_its_precision_is_known() -> None:
    assert tabulate(TINY)["precision"].tolist() == ["fp32", "fp32", "bf16", "bf16"]


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_its_networks_are_rebuilt_and_answer_as_then(run: Path) -> None:
    network = RunFolder.at(run).network(1, 8, 10)
    stored = pd.read_csv(run / "outcomes" / "clean.csv")
    digits = Digits().load(None, None)
    x = digits.test_x[torch.tensor(stored["index"].to_numpy())].float() / 255
    assert network(x).argmax(1).tolist() == stored["pred"].tolist()


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_its_certificates_are_explained(run: Path) -> None:
    assert f"{run.name}: believable" in explain(run, read_manifest(TINY))
