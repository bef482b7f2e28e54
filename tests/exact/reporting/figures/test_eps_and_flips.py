"""Accuracy against the radius and flips between two runs: what is drawn is what the stored verdicts say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EventCollection
from matplotlib.patches import Rectangle

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.reporting.comparison import compare_runs
from robustbench_sparse.reporting.curve import curve
from robustbench_sparse.reporting.figures.flips import Flips, places
from robustbench_sparse.reporting.figures.making import make
from robustbench_sparse.reporting.figures.radii import AgainstEps, steps
from robustbench_sparse.reporting.plots import WIDTHS, new_figure
from robustbench_sparse.runs.folder import RunFolder
from tests.helpers.commands import call, one_line
from tests.helpers.sealing import sealed

# Of five images: right when clean, and under attacks that stay inside balls of 0.1 (two of them), 0.2 and 0.3.
VERDICTS = {
    "clean": (1, 1, 1, 1, 0),
    "pgd1": (1, 1, 1, 0, 0),
    "fgsm1": (1, 1, 0, 1, 0),
    "pgd2": (1, 0, 1, 1, 0),
    "pgd3": (0, 0, 0, 0, 0),
}
RADII = {"pgd1": 0.1, "fgsm1": 0.1, "pgd2": 0.2, "pgd3": 0.3}
TRAINING = {
    "status": "complete", "reason": "", "train_seconds": 1.0, "selected": {}, "asked": [], "weights_sha256": "",
}  # fmt: skip
DISTANCES = (0.05, 0.15, 0.25, 0.35, 0.0)


def benchmark(folder: Path, distances: tuple[float, ...] = DISTANCES) -> Path:
    """Two runs, judged on five images; the attack ``cw`` seeks the smallest perturbation, all others stay inside."""
    runs = [{"run_id": f"{label}-s0", "run": label, "seed": 0} for label in ("a", "b")]
    threat = {"norm": "linf", "eps": 0.3}
    manifest = {"name": "t", "dataset": "d", "attacks": [*RADII, "cw"], "threat": threat, "runs": runs}
    folder.mkdir()
    (folder / "benchmark.json").write_text(json.dumps({**manifest, "published": {}}))
    for run in runs:
        home = folder / "runs" / str(run["run_id"])
        (home / "outcomes").mkdir(parents=True)
        (home / "run.json").write_text(json.dumps({**run, "model": "m", "defenses": "", "threat": threat}))
        (home / "training.json").write_text(json.dumps(TRAINING))
        for label, right in VERDICTS.items():
            other = right[::-1] if run["run"] == "b" and label == "pgd2" else right
            _write(home, label, other, RADII.get(label, 0.0))
        _cw(home, distances)
    return sealed(folder)


def _write(home: Path, label: str, right: tuple[int, ...], eps: float) -> None:
    key = {"attack": {"threat": {"norm": "linf", "eps": eps}}} if eps else {}
    about = {"status": "ok", "reason": "", "n": 5, "seconds": 1.0, "key": key, "bounded": True}
    (home / "outcomes" / f"{label}.json").write_text(json.dumps(about))
    table = pd.DataFrame({"index": range(10, 15), "label": 0})
    verdict: dict[str, Any] = {"adv_correct": right, "linf": eps, "l2": eps, "status": "ok"}
    table = table.assign(**(verdict if eps else {"correct": right}))
    table.to_csv(home / "outcomes" / f"{label}.csv", index=False)


def _cw(home: Path, distances: tuple[float, ...]) -> None:
    key = {"attack": {"threat": {"norm": "linf", "eps": 0.3}}}
    about = {"status": "ok", "reason": "", "n": 5, "seconds": 1.0, "key": key, "bounded": False}
    (home / "outcomes" / "cw.json").write_text(json.dumps({**about, "minimum_norm": True}))
    table = pd.DataFrame({"index": range(10, 15), "label": 0, "distance": distances, "linf": distances})
    table = table.assign(
        l2=1.0, status="ok", adv_correct=[float(d > 0.3) for d in distances], far_correct=0.0
    )
    table.to_csv(home / "outcomes" / "cw.csv", index=False)


def test_several_attacks_make_steps_that_only_fall(tmp_path: Path) -> None:
    run = RunFolder.at(benchmark(tmp_path / "t") / "runs" / "a-s0")
    table = steps(run, RADII)
    # An image that a smaller ball breaks is broken in the larger one, whatever the attack there found.
    assert table[["eps", "accuracy"]].to_numpy().tolist() == [[0, 80], [0.1, 40], [0.2, 20], [0.3, 0]]
    low, high = wilson(2, 5)
    assert (table["lo"][1], table["hi"][1]) == (pytest.approx(100 * low), pytest.approx(100 * high))
    with pytest.raises(UserError, match=r"all of them at eps = 0\.1; expected two radii"):
        steps(run, {"pgd1": 0.1, "fgsm1": 0.1})


def test_one_attack_that_seeks_the_smallest_is_drawn_as_its_curve(tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "t")
    runs = [RunFolder.at(folder / "runs" / f"{label}-s0") for label in ("a", "b")]
    figure = new_figure(tmp_path / "f.png")
    AgainstEps(zoom=0.4).draw(figure, runs)
    (ax,) = figure.axes
    first, second = (np.asarray(line.get_data()).tolist() for line in ax.lines)
    assert [line.get_label() for line in ax.lines] == ["a", "b"]
    assert (first[0][0], first[0][-1], len(first[0])) == (0, 0.4, 61)
    assert first[1] == curve(runs[0].path, "cw", first[0])["accuracy"].tolist()
    assert second == first
    assert len(ax.collections) == 2, "a band each"


def test_flips_are_those_of_compare(tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "t")
    runs = [RunFolder.at(folder / "runs" / f"{label}-s0") for label in ("a", "b")]
    (row,) = compare_runs(runs[0].path, runs[1].path, "pgd2").to_dict("records")
    assert places({str(key): value for key, value in row.items()}) == ([10, 13], [11, 14])
    figure = new_figure(tmp_path / "f.png")
    Flips(attack=("pgd2", "clean")).draw(figure, runs)
    bars, marks = figure.axes
    assert [p.get_width() for p in bars.patches if isinstance(p, Rectangle)] == [40, 0, -40, 0]
    assert [c.get_positions() for c in marks.collections if isinstance(c, EventCollection)] == [
        [10, 13],
        [11, 14],
    ]


@pytest.mark.parametrize(("width", "inches"), WIDTHS.items())
def test_a_printed_figure_has_its_width_and_embedded_fonts(tmp_path: Path, width: str, inches: float) -> None:
    out = tmp_path / "f.pdf"
    make("flips", [benchmark(tmp_path / "t")], out, width=width)
    content = out.read_bytes()
    assert f"/MediaBox [ 0 0 {72 * inches:g} ".encode() in content
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    folder, out = benchmark(tmp_path / "t"), tmp_path / "f.pdf"
    for words, said in (
        (["eps", "--attack", "pgd9"], "no attack 'pgd9' (did you mean"),
        (["eps", "--attack", "pgd1"], "stays inside its ball and says nothing beyond"),
        (["eps", "--zoom", "0"], "--zoom: expected a radius above 0"),
        (["flips", "--attack", "wrost"], "did you mean 'worst'"),
        (["flips", "--only", "a"], "expected 2 runs, got 1"),
        (["flips", "--width", "three"], "--width: expected one or two"),
    ):
        kind, *more = words
        assert said in one_line(call("plot", kind, folder, *more, "-o", out))
    assert not out.exists()
