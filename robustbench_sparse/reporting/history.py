"""How trainings went: accuracy, l1 norm and zeros after every epoch, over the seeds of each run.

Linearised Bregman iterations add weights as they go, proximal and pruning methods take them away (Bungert et al.,
arXiv:2105.04319, figures 2 and 3): only the course of a training shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_sparse.foundation.errors import UserError, check_runs_exist, one_line
from robustbench_sparse.foundation.texts import csv_text
from robustbench_sparse.reporting.plots import new_figure, save
from robustbench_sparse.reporting.render import from_rows, to_text
from robustbench_sparse.runs import names
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.seals import Seals

# What is shown of classifiers; of restoration networks the errors take the accuracies' place.
SHOWN = ("train_accuracy", "val_accuracy", "l1_norm", "nonzero")
SHOWN_ERRORS = ("train_mse", "val_mse", *SHOWN[2:])
_TITLES = {
    "train_accuracy": "train accuracy in %",
    "val_accuracy": "validation accuracy in %",
    "train_mse": "train squared error",
    "val_mse": "validation squared error",
    "l1_norm": "l1 norm",
    "nonzero": "non-zero weights in %",
}
_PRINTED = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # epochs; the last one always


def collect(folder: Path, only: Sequence[str] = (), layers: bool = False) -> pd.DataFrame:
    """The histories of a benchmark's runs.

    Args:
        folder: ``results/<benchmark>``.
        only: labels of runs; all if empty.
        layers: one line per layer, too, in place of the whole network.

    Returns:
        ``run``, ``seed``, ``passed`` (epochs trained, over all stages), ``layer`` where asked for, the columns of
        ``history.csv`` or ``layers.csv``, and ``nonzero``: percentage of weights of the deployed network (or layer)
        that are not zero.

    Raises:
        UserError: for a run that does not exist, or where no run was trained yet.
    """
    manifest = read_manifest(folder)
    labels = list(dict.fromkeys(entry["run"] for entry in manifest["runs"]))
    check_runs_exist(only, labels)
    parts = []
    for entry in manifest["runs"]:
        home, name = folder / names.RUNS / entry["run_id"], names.LAYERS if layers else names.HISTORY
        path, seals = home / name, Seals(home)
        if (only and entry["run"] not in only) or not seals.has(name):
            continue
        seals.check(name)
        if path.read_text(encoding="utf-8").strip():  # a network without weights has no epochs
            parts.append(_one(path, entry))
    if not parts:
        raise UserError(f"{folder}: no run has been trained to its end")
    return pd.concat(parts, ignore_index=True)


def _one(path: Path, entry: dict[str, Any]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
        rounds = table.groupby(["stage", "epoch"], sort=False).ngroup() + 1
        if "zero_weights" in table:
            table["nonzero"] = 100 * (1 - table["zero_weights"] / table["weights"])
        else:
            table["nonzero"] = 100 - table["weight_sparsity"]
    except (KeyError, TypeError, ValueError, OSError) as e:
        raise UserError(f"{path}: damaged: {type(e).__name__}: {one_line(e)[:200]}") from None
    table = table.rename(columns={"name": "layer"})
    if "layer" in table:
        table["layer"] = [csv_text(v) if isinstance(v, str) else v for v in table["layer"]]
    table.insert(0, "passed", rounds)
    table.insert(0, "seed", entry["seed"])
    table.insert(0, "run", entry["run"])
    out: pd.DataFrame = table
    return out


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (ddof = 1; empty for one seed) of every column over the seeds.

    Args:
        table: as ``collect`` gives it.

    Returns:
        One row per run, epoch passed (and layer): ``seeds``, and ``<column>_mean`` and ``<column>_std`` each.
    """
    keys = ["run", "passed", *(["layer"] if "layer" in table else [])]
    columns = [c for c in table.columns if c not in (*keys, "seed", "stage", "epoch")]
    groups = table.groupby(keys, sort=False)
    out = groups.size().rename("seeds").to_frame()
    for column in columns:
        out[f"{column}_mean"] = groups[column].mean()
        out[f"{column}_std"] = groups[column].std(ddof=1)
    flat: pd.DataFrame = out.reset_index()
    return flat


def text_of(table: pd.DataFrame) -> str:
    """Some epochs of every run, for people; of ``over_seeds`` without layers."""
    rows, columns = [], shown_of(table)
    for run, group in table.groupby("run", sort=False):
        shown = group[group["passed"].isin([*_PRINTED, group["passed"].max()])]
        for row in shown.to_dict("records"):
            rows.append([str(run), str(row["passed"]), *(_spread(row, c) for c in columns)])
    return to_text(from_rows(["run", "epoch", *columns], rows, texts=["run"]), rule=False) + "\n"


def shown_of(table: pd.DataFrame) -> tuple[str, ...]:
    """The figures that a table of ``over_seeds`` is shown by."""
    return SHOWN_ERRORS if "val_mse_mean" in table else SHOWN


def _spread(row: dict[Any, Any], column: str) -> str:
    mean, std = row[f"{column}_mean"], row[f"{column}_std"]
    if pd.isna(mean):
        return ""
    form = ".3g" if column.endswith("mse") else ".2f"
    return f"{mean:{form}}" if pd.isna(std) else f"{mean:{form}} +- {std:{form}}"


def plot(table: pd.DataFrame, path: Path, title: str = "") -> None:
    """Draw four curves over the epochs for every run, with the deviation over seeds as a band.

    Args:
        table: of ``over_seeds`` without layers.
        path: the file; its ending is the kind.
        title: above the figure.

    Raises:
        UserError: without matplotlib, or where the file cannot be written.
    """
    figure = new_figure(path, figsize=(11, 7))
    figure.suptitle(title)
    axes = figure.subplots(2, 2).flatten()
    for ax, column in zip(axes, shown_of(table), strict=True):
        for run, group in table.groupby("run", sort=False):
            x, mean = group["passed"], group[f"{column}_mean"]
            std = group[f"{column}_std"].fillna(0)
            (line,) = ax.plot(x, mean, label=run)
            ax.fill_between(x, mean - std, mean + std, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(xlabel="epoch", ylabel=_TITLES[column])
        if column.endswith("mse"):
            ax.set_yscale("log")
        low = table[f"{column}_mean"].quantile(0.05)
        if column.endswith("accuracy") and not pd.isna(low):  # the first epochs would flatten all others
            ax.set_ylim(low - 0.5, 100.2)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize="small")
    save(figure, path)
