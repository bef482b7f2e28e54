"""Rows side by side: whole runs of the command, one process against two, alternating; each into a new folder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.bench import Bench
from benchmarks.lines import Line, faster
from benchmarks.timing import Side, interleave
from robustbench_sparse.config.columns import SECONDS

JOBS = 2
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def quickstart(bench: Bench, budget: float) -> list[Line]:
    """The seven rows of quickstart, trained, attacked and certified."""
    if bench.sizes.whole_runs:
        return [_line("quickstart, 7 rows, certified", QUICKSTART, 1.7, bench, budget)]
    return [Line("quickstart", note="Left out of a trial.")]


def perceptrons(bench: Bench, budget: float) -> list[Line]:
    """Eight perceptrons, each with an epoch of PGD training on MNIST (the digits, where it is not here)."""
    mnist = bench.root is not None and (bench.root / "MNIST").exists()
    whole = bench.sizes.whole_runs
    config = {
        "name": "perceptrons",
        "data": "mnist" if mnist else "digits",
        "validation": 100,
        "threat": {"norm": "linf", "eps": 0.2},
        "attacks": {"fgsm": "fgsm", "pgd20": {"name": "pgd", "steps": 20}},
        "evaluation": {"limit": 1000 if whole else 20},
        "seeds": list(range(8)),
        "model": "mlp",
        "train": {"epochs": 2 if whole else 1, "batch_size": 128, "optimizer": {"name": "sgd", "lr": 0.1}},
        "runs": {"pgd_at": {"defenses": [{"name": "pgd_at", "steps": 5}]}},
    }
    name = f"eight perceptrons on {'MNIST' if mnist else 'digits'}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "perceptrons.yaml"
        path.write_text(yaml.safe_dump(config))
        return [_line(name, path, 1.8, bench, budget)]


def _line(what: str, config: Path, at_least: float, bench: Bench, budget: float) -> Line:
    tables: list[pd.DataFrame] = []

    def run(jobs: int) -> None:
        with tempfile.TemporaryDirectory() as out:
            words: list[Any] = ["-m", "robustbench_sparse", "run", config, "-q", "--jobs", jobs, "--out", out]
            words += [] if bench.root is None else ["--data-root", bench.root.resolve()]
            subprocess.run([sys.executable, *map(str, words)], check=False, capture_output=True)
            (table,) = Path(out).glob("*/leaderboard.csv")
            tables.append(pd.read_csv(table, dtype=str).drop(columns=list(SECONDS)))

    sides = [
        Side("together", lambda _: run(JOBS), lambda: None),
        Side("alone", lambda _: run(1), lambda: None),
    ]
    measured = interleave(sides, repeats=bench.sizes.repeats, budget=budget, device=bench.device)
    together, alone = (measured[side].per() for side in ("together", "alone"))
    same = all(table.equals(tables[0]) for table in tables)
    return faster(
        f"{what}, --jobs {JOBS}",
        "s",
        together,
        "--jobs 1",
        alone,
        at_least=at_least,
        agreement="the same numbers" if same else "THE NUMBERS DIFFER",
        note="Whole commands, their start and the reading of images among them.",
    )
