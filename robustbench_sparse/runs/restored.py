"""Reading the run's folder of a restoration network: errors and their intervals, from the records of every image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_sparse.config.columns import MSE, RESTORED
from robustbench_sparse.foundation.intervals import mean_interval
from robustbench_sparse.runs import names
from robustbench_sparse.runs.outcomes import gap_in, inside_ball, put_right, read_outcome


def errors(run: Path, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Cells of one run's folder; what keeps them from being complete; and what was put right on the way.

    ``mse``, ``psnr`` and ``ssim`` are means over the images on the degraded inputs, ``<attack>_mse`` is that under an
    attack. ``worst_mse`` is the mean of each image's largest error, over the attacks whose inputs lie in the ball.
    """
    columns = ("index", "psnr", "mse", "ssim", "status")
    clean, problem, seconds = read_outcome(run, names.CLEAN, columns, None, math.inf)
    if clean is None:
        return {}, [problem], []
    row: dict[str, Any] = {"n": len(clean)}
    for name in RESTORED:
        row |= _cells(name, clean[name])
    gaps: list[str] = []
    notes: list[str] = []
    worst = clean["mse"]
    for label in manifest["attacks"]:
        columns = ("index", "linf", "adv_mse", "l2", "status")
        table, problem, took = read_outcome(run, label, columns, manifest["settings"].get(label), math.inf)
        seconds += took
        if table is None:
            gaps.append(problem)
            continue
        gap = gap_in(label, table, "adv_mse")
        if not gap and not table["index"].equals(clean["index"]):
            gap = f"{label}: judged on other images than clean"
        if gap:
            gaps.append(gap)
            continue
        notes += put_right(label, table)
        row |= _cells(f"{label}{MSE}", table["adv_mse"])
        worse = inside_ball(table, manifest["threat"]) & (table["adv_mse"] > worst)
        worst = worst.mask(worse, table["adv_mse"])
    if manifest["attacks"] and not gaps:
        row |= _cells(f"worst{MSE}", worst)
    return {**row, "eval_seconds": seconds}, gaps, notes


def _cells(name: str, values: pd.Series[float]) -> dict[str, float]:
    """A mean and its interval; empty where an image has none, as SSIM has none of images smaller than its window."""
    numbers = values.to_numpy(dtype=np.float64)
    if len(numbers) == 0 or np.isnan(numbers).any():
        return {}
    low, high = mean_interval(numbers.tolist())
    return {name: float(numbers.mean()), f"{name}_lo": low, f"{name}_hi": high}
