"""Which runs a figure is drawn of, and what they are called in it."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import read_manifest


def find_runs(targets: Sequence[str | Path], only: Sequence[str] = ()) -> list[RunFolder]:
    """The runs that a command names, each once, in their order.

    Args:
        targets: folders of runs, folders of benchmarks (all their runs that were trained to the end), or patterns with
            ``*`` and ``?`` of either.
        only: labels of runs, in which ``*`` and ``?`` stand for other characters; all runs if empty.

    Raises:
        UserError: a folder that is neither, a benchmark without a trained run, or labels that no run has.
    """
    found: dict[Path, RunFolder] = {}
    for target in targets:
        for folder in _matching(target):
            for run in _runs_at(folder):
                found.setdefault(run.path.absolute(), run)
    runs = list(found.values())
    labels = list(dict.fromkeys(run.label for run in runs))
    for wanted in only:
        if not fnmatch.filter(labels, wanted):
            raise UserError(
                f"--only {wanted}: no such run{near(wanted, labels)}; there are: {', '.join(labels)}"
            )
    return [run for run in runs if not only or any(fnmatch.fnmatchcase(run.label, w) for w in only)]


def _matching(target: str | Path) -> list[Path]:
    path = Path(target)
    if path.exists() or not any(c in str(target) for c in "*?"):
        return [path]
    # Parent by parent, since a pattern may stand in any of them.
    found = [Path(path.anchor)]
    for part in path.relative_to(path.anchor).parts:
        found = [
            p for f in found for p in (sorted(f.glob(part)) if any(c in part for c in "*?") else [f / part])
        ]
    found = [p for p in found if p.exists()]
    if not found:
        raise UserError(f"{target}: nothing there matches")
    return found


def _runs_at(folder: Path) -> list[RunFolder]:
    if not (folder / names.BENCHMARK).is_file():
        return [RunFolder.at(folder)]
    entries = read_manifest(folder)["runs"]
    there = [folder / names.RUNS / str(entry["run_id"]) for entry in entries]
    runs = [RunFolder.at(path) for path in there if (path / names.RUN).is_file()]
    trained = [run for run in runs if run.complete()]
    if not trained:
        raise UserError(f"{folder}: no run has been trained to its end")
    return trained


def benchmark_of(run: RunFolder) -> Path:
    """The folder of the benchmark that a run belongs to."""
    return run.path.absolute().parent.parent


def titles(runs: Sequence[RunFolder]) -> list[str]:
    """What each run is called among the others: its label, with seed and benchmark where that leaves two alike."""
    ways: list[Callable[[RunFolder], str]] = [
        lambda run: run.label,
        lambda run: f"{run.label}, seed {run.seed}",
        lambda run: f"{benchmark_of(run).name}: {run.label}, seed {run.seed}",
    ]
    for way in ways:
        called = [way(run) for run in runs]
        if len(set(called)) == len(called):
            return [as_text(name) for name in called]
    return [as_text(run.run_id) for run in runs]


def by_row(runs: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    """The runs of each row of a benchmark, one per seed, by what the row is called."""
    groups: dict[tuple[Path, str], list[RunFolder]] = {}
    for run in runs:
        groups.setdefault((benchmark_of(run), run.label), []).append(run)
    often = Counter(label for _, label in groups)
    return {
        as_text(label if often[label] == 1 else f"{home.name}: {label}"): group
        for (home, label), group in groups.items()
    }


def as_text(name: str) -> str:
    """A name as matplotlib shows it letter by letter: it would set what stands between dollars as mathematics."""
    return printable(name).replace("$", r"\$")
