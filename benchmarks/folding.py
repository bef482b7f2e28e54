"""``python -m benchmarks.folding``: how long a leaderboard of many rows takes, in a folder made up for it."""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from robustbench_sparse.config.columns import COUNTS, SPARSITIES
from robustbench_sparse.foundation.files import write_json
from robustbench_sparse.foundation.ranking import ranking
from robustbench_sparse.reporting.leaderboard import tabulate
from robustbench_sparse.runs.seals import seal

THREAT = {"norm": "linf", "eps": 0.1}


def main(arguments: list[str] | None = None) -> int:
    """Print the seconds of ranking alone and of the whole fold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folding", description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--attacks", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="also print where the fold's time goes")
    options = parser.parse_args(arguments)
    for draws in (1, 10):
        rows = [verdicts(seed, options.images, draws).tolist() for seed in range(options.rows)]
        what = "sharp verdicts" if draws == 1 else f"shares of {draws} draws"
        print(f"ranks of {options.rows} x {options.images} {what}: {seconds(partial(ranking, rows)):.2f} s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = make(Path(temporary) / "made", options.rows, options.images, options.attacks)
        size = f"{options.rows} rows x {options.images} images x {options.attacks} attacks"
        print(f"fold of {size}: {seconds(lambda: tabulate(folder)):.2f} s")
        if options.profile:
            with cProfile.Profile() as profile:
                tabulate(folder)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(30)
    return 0


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def verdicts(seed: int, images: int, draws: int = 1) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Shares of draws that a made-up network has right, per image; the better the larger the seed."""
    random = np.random.RandomState(seed)
    return random.binomial(draws, min(0.3 + 0.002 * seed, 0.9), images) / draws


def make(folder: Path, rows: int, images: int, attacks: int) -> Path:
    """A benchmark's folder as ``run`` leaves it, as far as a fold reads it."""
    labels = [f"attack{k}" for k in range(attacks)]
    runs = [{"run_id": f"run{k}-s0", "run": f"run{k}", "seed": 0} for k in range(rows)]
    for seed, entry in enumerate(runs):
        home = folder / "runs" / str(entry["run_id"])
        write_json(home / "run.json", {**entry, "model": "mlp()", "defenses": "", "threat": THREAT})
        write_json(home / "environment.json", {"commit": "made up"})
        training = {"status": "complete", "reason": "", "train_seconds": 1.0, "selected": {}}
        write_json(home / "training.json", training)
        counts = {**dict.fromkeys(SPARSITIES, 0.0), **dict.fromkeys(COUNTS, 1)}
        write_json(home / "sparsity.json", {**counts, "asked": [], "refused": ""})
        _outcomes(home / "outcomes", labels, seed, images)
        seal(home)
    manifest = {"name": folder.name, "dataset": "made up", "threat": THREAT, "published": {}}
    write_json(folder / "benchmark.json", {**manifest, "attacks": labels, "runs": runs})
    return folder


def _outcomes(folder: Path, labels: list[str], seed: int, images: int) -> None:
    """The stored verdicts of the clean images and of every attack."""
    folder.mkdir()
    random = np.random.RandomState(seed)
    where = {"index": np.arange(images), "label": random.randint(10, size=images)}
    pd.DataFrame({**where, "correct": 1.0}).to_csv(folder / "clean.csv", index=False)
    for k, label in enumerate(labels):
        norms = {"linf": random.rand(images) / 10, "l2": random.rand(images), "distance": random.rand(images)}
        right = {"adv_correct": verdicts(seed + 1000 * k, images), "far_correct": 0.0}
        table = pd.DataFrame({**where, **right, **norms, "status": "ok"})
        table.to_csv(folder / f"{label}.csv", index=False)
    about = {"status": "ok", "reason": "", "n": images, "seconds": 1.0, "key": {}, "bounded": True}
    for label in ("clean", *labels):
        write_json(folder / f"{label}.json", {**about, "label": label})


if __name__ == "__main__":
    sys.exit(main())
