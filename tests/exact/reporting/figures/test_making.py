"""From a command's words to a file: runs, titles, options, what is refused, and equal bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_sparse.config.plugins import describe, settings_with_defaults
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures import FIGURES
from robustbench_sparse.reporting.figures.finding import as_text, by_row, find_runs, titles
from robustbench_sparse.reporting.figures.making import built, lines_of, make
from robustbench_sparse.runs.folder import RunFolder
from tests.helpers.fabricated_runs import benchmark_of, fabricated, images, plan_of

STATE = {"fc.weight": torch.tensor([[0.0, 1.0], [0.5, -1.0]])}


def two(folder: Path) -> list[RunFolder]:
    """Two seeds of a row and one of another, in a benchmark's folder."""
    plan = plan_of(runs={"a": {}, "b": {}}, seeds=[0, 1])
    runs = [
        fabricated(folder, STATE, plan=plan_of(label), seed=s) for label, s in (("a", 0), ("a", 1), ("b", 0))
    ]
    facts = {"run_id": "b-s1-0", "run": "b", "seed": 1}
    untrained = RunFolder(path=folder / "runs" / "b-s1-0", run_id="b-s1-0", label="b", seed=1, facts=facts)
    untrained.prepare(torch.device("cpu"))
    benchmark_of(folder, plan, [*runs, untrained])
    return runs


def test_a_benchmark_stands_for_its_trained_runs(tmp_path: Path) -> None:
    runs = two(tmp_path / "small")
    ids = [run.run_id for run in runs]
    assert [run.run_id for run in find_runs([tmp_path / "small"])] == ids
    assert [run.run_id for run in find_runs([runs[1].path, tmp_path / "small"])] == [ids[1], ids[0], ids[2]]
    assert [run.run_id for run in find_runs([tmp_path / "small"], ["b*"])] == [ids[2]]
    assert [run.run_id for run in find_runs([f"{tmp_path}/sm*/runs/a-*"])] == ids[:2]


def test_what_is_no_run(tmp_path: Path) -> None:
    two(tmp_path / "small")
    with pytest.raises(UserError, match="not a run's folder"):
        find_runs([tmp_path])
    with pytest.raises(UserError, match="nothing there matches"):
        find_runs([f"{tmp_path}/x*"])
    with pytest.raises(UserError, match=r"--only aa: no such run \(did you mean 'a'\?\)"):
        find_runs([tmp_path / "small"], ["aa"])


def test_names_are_as_long_as_they_have_to_be(tmp_path: Path) -> None:
    a0, a1, b0 = two(tmp_path / "small")
    assert titles([a0, b0]) == ["a", "b"]
    assert titles([a0, a1]) == ["a, seed 0", "a, seed 1"]
    other = two(tmp_path / "other")[0]
    assert titles([a0, other]) == ["small: a, seed 0", "other: a, seed 0"]
    assert list(by_row([a0, a1, b0])) == ["a", "b"]
    assert [len(group) for group in by_row([a0, a1, other]).values()] == [2, 1]
    assert list(by_row([a0, other])) == ["small: a", "other: a"]
    assert as_text("a$b$\n") == r"a\$b\$ "


def test_every_figure_says_what_it_is() -> None:
    text = "\n".join(lines_of())
    for name, cls in FIGURES.items():
        assert f"{name}: {describe(cls)}" in text
        assert cls.published in text
        for setting in settings_with_defaults(cls):
            assert f"{setting}: " in (cls.__doc__ or ""), f"{name} does not explain {setting}"


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("weigths", {}, r"plot weigths: no such figure \(did you mean 'weights'"),
        ("widths", {"log": True}, r"plot widths: --log: not an option of this figure; there are: none"),
        ("channels", {"epochs": (1,)}, r"--epochs: not an option .* --layer, --per-layer, --sorted"),
        ("weights", {"bins": 2}, r"plot weights: --bins: expected an odd number"),
        ("weights", {"zoom": math.nan}, r"plot weights: --zoom: expected a number > 0"),
        ("path", {}, r"plot path: --x: expected a setting's key path"),
    ],
)
def test_an_unknown_figure_or_option(kind: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        built(kind, options)


def test_a_network_that_was_not_trained_here_has_no_figures(tmp_path: Path) -> None:
    facts = {"run": "theirs", "seed": 0, "model": "Net", "identity": "abc"}
    home = RunFolder.foreign(tmp_path / "theirs-s0-abc", plan_of(), images(), facts)
    home.prepare(torch.device("cpu"))
    home.store_foreign()
    for kind in ("weights", "widths", "skips", "neurons"):
        with pytest.raises(UserError, match=r"no layers\.csv: not trained here to its end"):
            make(kind, [home.path], tmp_path / "f.png")
    with pytest.raises(UserError, match="not trained here: it has no settings"):
        make("path", [home.path, two(tmp_path / "small")[0].path], tmp_path / "f.png", {"x": "lam"})


def test_nothing_is_written_where_something_is_wrong(tmp_path: Path) -> None:
    runs = two(tmp_path / "small")
    out = tmp_path / "out"
    for words, match in (
        (("weights", [runs[0].path], out / "f.gif"), r"-o .*f\.gif: expected a file ending in one of"),
        (("weights", [runs[0].path], out / "f"), "expected a file ending in"),
        (("path", [runs[0].path], out / "f.png", {"x": "lr"}), "plot path: expected 2 to 10000 runs, got 1"),
        (("skips", [runs[0].path], out / "f.png"), "neither skip parameters"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=match):
            make(*words)
    assert not out.exists()


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_the_same_runs_give_the_same_bytes(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "small"
    two(folder)
    first, second = (tmp_path / f"{name}.{ending}" for name in ("a", "b"))
    for path in (first, second):
        assert make("layer", [folder], path, {"layer": ("fc",)}) == 3
    assert first.read_bytes() == second.read_bytes()
    assert b"Date" not in first.read_bytes()
