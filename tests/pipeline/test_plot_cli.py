"""The command plot on trained runs: every figure, what it prints, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.reporting.figures import FIGURES
from tests.helpers.commands import call, one_line
from tests.helpers.small import small

BEGINS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def config(**train: Any) -> dict[str, Any]:
    """Two networks that start sparse, of which lambda decides how sparse they stay."""

    def row(lam: float) -> dict[str, Any]:
        optimizer = {"name": "linbreg", "lr": 0.1, "lam": lam, "momentum": 0.9}
        return {"defenses": [{"name": "sparse_init", "density": 0.1}], "train": {"optimizer": optimizer}}

    raw = small(
        runs={f"lam_{lam:g}": row(lam) for lam in (0.01, 0.1)},
        model={"name": "densenet", "layers": 2, "growth": 4},
        attacks={},
        evaluation={"limit": 16},
    )
    raw["train"] = {"epochs": 2, "batch_size": 64, **train}
    return raw


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("plot_results")
    run_benchmark(config(snapshots=[0, 2]), out=out, device="cpu")
    return out / "small"


def first(results: Path) -> Path:
    return sorted((results / "runs").iterdir())[0]


WORDS: dict[str, list[str]] = {
    "weights": ["--log", "--per-layer"],
    "channels": ["--sorted"],
    "layer": ["--layer", "block.1.conv", "--first", "3"],
    "path": ["--x", "lam", "--y", "weight_sparsity", "--y", "clean"],
    "filters": ["--epochs", "0,2"],
    "widths": [],
    "skips": [],
    "neurons": ["--epochs", "1,2"],
}


@pytest.mark.parametrize(("kind", "ending"), [*zip(WORDS, ["png", "pdf", "svg"] * 3, strict=False)])
def test_a_figure_of_a_whole_benchmark(results: Path, tmp_path: Path, kind: str, ending: str) -> None:
    out = tmp_path / f"f.{ending}"
    result = call("plot", kind, results, *WORDS[kind], "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert result.stderr == f"written: {out} (2 runs)\n"
    assert out.read_bytes().startswith(BEGINS[ending])


def test_features_of_one_run(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.png"
    result = call("plot", "features", results, "--only", "lam_0.1", "--images", "2", "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stderr.endswith("(1 run)\n")


def test_every_figure_is_tried_here_or_needs_another_task() -> None:
    # These draw evaluated rows: tests/exact/reporting/figures/test_tradeoff.py and test_eps_and_flips.py.
    elsewhere = {"tradeoff", "eps", "flips"}
    assert {*WORDS, "features", "images"} | elsewhere == {*FIGURES}


def test_the_snapshots_are_those_of_the_training(results: Path) -> None:
    run = first(results)
    assert sorted(p.name for p in (run / "snapshots").iterdir()) == ["0-0.safetensors", "0-2.safetensors"]
    assert {"snapshots/0-0.safetensors", "snapshots/0-2.safetensors"} <= {*read_json(run / "files.json")}
    start, end = (load_file(run / "snapshots" / f"0-{n}.safetensors") for n in (0, 2))
    layers = pd.read_csv(run / "layers.csv")
    zeros = layers[layers["epoch"] == 1].set_index("name")["zero_weights"]
    for name, count in zeros.items():
        assert int((end[f"{name}.weight"] == 0).sum()) == count
    assert any(not torch.equal(start[name], end[name]) for name in end)


def test_without_a_figure_it_lists_them() -> None:
    result = call("plot")
    assert result.exit_code == 0
    heads = [line.partition(":")[0] for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert heads == list(FIGURES)


def test_the_help_has_examples() -> None:
    result = call("plot", "--help")
    assert "robustbench-sparse plot weights" in result.stdout.partition("Examples:")[2]
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_what_is_refused_is_one_line_and_writes_nothing(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.png"
    for words, said in (
        (["weigths", results, "-o", out], "did you mean 'weights'"),
        (
            ["weights", results, "-o", tmp_path / "f.jpeg"],
            "expected a file ending in one of .pdf, .png, .svg",
        ),
        (["weights", results], "-o: expected a file"),
        (["weights", "-o", out], "expected folders of runs"),
        (["weights", tmp_path, "-o", out], "not a run's folder"),
        (["weights", results, "--epochs", "1", "-o", out], "--epochs: not an option of this figure"),
        (["neurons", results, "--epochs", "1,x", "-o", out], "--epochs: expected whole numbers"),
        (["layer", results, "--layer", "block.1.con", "-o", out], "did you mean 'block.1.conv'"),
        (["filters", results, "--epochs", "1", "-o", out], "kept no network then; there are: 0, 2"),
        (["images", results, "-o", out], "task: restore"),
        (["path", results, "--x", "lan", "-o", out], "did you mean 'lam'"),
    ):
        assert said in one_line(call("plot", *words))
    assert list(tmp_path.iterdir()) == []


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_run_trained_without_snapshots_does_not_pass_for_one_with_them(tmp_path: Path) -> None:
    raw = config()
    del raw["runs"]["lam_0.1"]
    run_benchmark(raw, out=tmp_path, device="cpu")
    run = first(tmp_path / "small")
    missing = one_line(call("plot", "filters", run, "-o", tmp_path / "f.png"))
    assert "set train.snapshots in its config" in missing
    notes = Notes()
    raw["train"]["snapshots"] = [0]
    run_benchmark(raw, out=tmp_path, device="cpu", show=notes)
    assert notes.said == [
        f"lam_0.01: trained before its snapshots were asked for: delete {run} to train it again"
    ]
    assert [first(tmp_path / "small")] == [run]
    assert not (run / "snapshots").exists()
