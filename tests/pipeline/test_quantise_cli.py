"""The command quantise on trained runs: its files, its numbers, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import Result

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.data import DATASETS
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.sparsity.quantise.onnx_network import OnnxNetwork
from tests.helpers.commands import call, one_line
from tests.helpers.small import small

ODD = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        out = self.layer(x.flatten(1))
        return out if x.sum() > 9 else -out

def net():
    return Odd()

def bare():
    return nn.Flatten()
"""


def trained(folder: Path, **settings: Any) -> dict[str, Path]:
    """Folders of the runs of a small benchmark, by their labels."""
    config = small(threads=1, evaluation={"limit": 40}, **settings)
    config["train"]["augment"] = {}
    run_benchmark(config, out=folder, device="cpu", jobs=1)
    return {path.name.partition("-")[0]: path for path in (folder / "small" / "runs").iterdir()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network with half of its neurons pruned, and a dense one whose images it is attacked with."""
    return trained(
        tmp_path_factory.mktemp("quantise_results"),
        model={"name": "mlp", "hidden": [32, 16]},
        attacks={"pgd": {"name": "pgd", "steps": 5}, "other": {"name": "transfer", "source": "dense"}},
        runs={
            "pruned": {"defenses": [{"name": "magnitude_prune", "sparsity": 50, "group": "row"}]},
            "dense": {},
        },
    )


@pytest.fixture(scope="module")
def made(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("quantised") / "small.onnx"
    return out, call("quantise", runs["pruned"], "-o", out, "--limit", 40, "-q")


def test_it_writes_the_network_a_report_and_every_verdict(made: tuple[Path, Result]) -> None:
    out, result = made
    assert result.exit_code == 0, result.output
    assert sorted(path.suffix for path in out.parent.iterdir()) == [".csv", ".json", ".onnx"]
    report, table = json.loads(out.with_suffix(".json").read_text()), pd.read_csv(out.with_suffix(".csv"))
    assert report["images"] == len(table) == 40
    assert report["threat"] == {"norm": "linf", "eps": 0.1}
    # The benchmark's own attack, and one without gradients; not what another row's network is needed for.
    assert list(report["attacks"]) == ["pgd", "square500"]
    assert report["notes"] == ["other is left out: it is made on another row"]
    for way in ("float", "int8"):
        for label in ("clean", "worst"):
            assert report[label][way]["percent"] == pytest.approx(100 * table[f"{way}/{label}"].mean())
    for label in ("pgd", "square500", "worst"):
        both = table[[f"carried_over/{label}", f"straight_through/{label}"]].min(axis=1)
        assert table[f"int8/{label}"].equals(both)
    assert (table["int8/worst"] <= table["int8/pgd"]).all()
    assert report["worst"]["float"]["percent"] < report["clean"]["float"]["percent"]
    assert "carried" in result.stdout
    assert "Note: other is left out" in result.stdout


def test_its_numbers_are_those_of_the_files(made: tuple[Path, Result], runs: dict[str, Path]) -> None:
    out, _ = made
    report, table = json.loads(out.with_suffix(".json").read_text()), pd.read_csv(out.with_suffix(".csv"))
    data = DATASETS["digits"]().load()
    x, y = data.test_x[table["index"].tolist()].float() / 255, data.test_y[table["index"].tolist()]
    small_net = OnnxNetwork(out.read_bytes())
    model = RunFolder.at(runs["pruned"]).network(1, data.size, 10)
    with torch.no_grad():
        ours, theirs = small_net(x).argmax(1), model(x).argmax(1)
    assert table["int8/clean"].tolist() == (ours == y).float().tolist()
    assert table["float/clean"].tolist() == (theirs == y).float().tolist()
    assert report["agreement"] == pytest.approx(100 * float((ours == theirs).float().mean()))
    size, weights = report["size"], 64 * 32 + 32 * 16 + 16 * 10
    assert size["int8_onnx"]["bytes"] == out.stat().st_size
    assert size["weights_file"] == (runs["pruned"] / "model.safetensors").stat().st_size
    assert size["float_tensors"] == 4 * (weights + 32 + 16 + 10)
    assert weights <= size["int8_onnx"]["int8"] <= weights + 32 + 16 + 10
    assert size["int8_onnx"]["packed"] < size["int8_onnx"]["bytes"]
    assert [one["batch"] for one in report["latency"]] == [1, 128]


def test_the_same_seed_gives_the_same_file_and_verdicts(
    made: tuple[Path, Result], runs: dict[str, Path], tmp_path: Path
) -> None:
    again, other = tmp_path / "again.onnx", tmp_path / "other.onnx"
    assert call("quantise", runs["pruned"], "-o", again, "--limit", 40, "-q").exit_code == 0
    assert again.read_bytes() == made[0].read_bytes()
    assert again.with_suffix(".csv").read_text() == made[0].with_suffix(".csv").read_text()
    few = ("--limit", 5, "--calibration", 3, "--attacks", "fgsm", "--seed", 1, "--format", "csv", "-q")
    result = call("quantise", runs["pruned"], "-o", other, *few)
    assert result.exit_code == 0
    assert other.read_bytes() != again.read_bytes()
    lines = result.stdout.splitlines()
    assert lines[0] == "attack,float,int8,carried_over,straight_through"
    assert [line.partition(",")[0] for line in lines[1:]] == ["clean", "fgsm", "square500", "worst"]


@pytest.mark.slow
def test_dead_neurons_go_first_where_that_is_asked_for(
    runs: dict[str, Path], made: Any, tmp_path: Path
) -> None:
    pytest.importorskip("torch_pruning")
    out = tmp_path / "smaller.onnx"
    options = ("--shrink", "--limit", 10, "--attacks", "fgsm", "--format", "markdown", "-q")
    result = call("quantise", runs["pruned"], "-o", out, *options)
    assert result.exit_code == 0, result.output
    size = json.loads(out.with_suffix(".json").read_text())["size"]
    assert size["parameters_quantised"] < size["parameters"] == 64 * 32 + 32 * 16 + 16 * 10 + 58
    assert out.stat().st_size < made[0].stat().st_size
    assert result.stdout.startswith("| ")
    shrunk = tmp_path / "shrunk.safetensors"
    assert call("shrink", runs["pruned"], "-o", shrunk).exit_code == 0
    again = tmp_path / "again.onnx"
    assert call("quantise", shrunk, "-o", again, "--limit", 10, "--attacks", "fgsm", "-q").exit_code == 0
    other = json.loads(again.with_suffix(".json").read_text())
    assert other["size"]["parameters"] == size["parameters_quantised"]
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.slow
def test_a_random_network_is_quantised_without_its_noise(tmp_path: Path) -> None:
    model = {"name": "preact_resnet", "depth": 8, "widths": [4, 4, 4]}
    noisy = {"noisy": {"defenses": [{"name": "enresnet", "members": 2}]}}
    run = trained(tmp_path, model=model, attacks={"fgsm": "fgsm"}, runs=noisy)["noisy"]
    out = tmp_path / "noisy.onnx"
    result = call("quantise", run, "-o", out, "--limit", 5, "-q")
    assert result.exit_code == 0, result.output
    assert any(
        "its noise is off" in note for note in json.loads(out.with_suffix(".json").read_text())["notes"]
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "a.pt"], "--output: expected a name that ends in .onnx, got a.pt"),
        (["-o", "nowhere/a.onnx"], "--output: nowhere: no such folder"),
        (["-o", "there.onnx"], "there.json: is there already; --force writes over it"),
        (["-o", "a.onnx", "--suite", "strong"], "--suite: expected one of quick, standard, full, got 'strong'"),
        (["-o", "a.onnx", "--suite", "quick", "--attacks", "fgsm"], "--attacks and --suite: expected one of them"),
        (["-o", "a.onnx", "--attacks", "fgsmm"], "attacks.fgsmm"),
        (["-o", "a.onnx", "--eps", "much"], "--eps: expected a number >= 0"),
        (["-o", "a.onnx", "--format", "tex"], "--format: expected table, csv, markdown, got 'tex'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    runs: dict[str, Path], options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("{}")
    assert said in one_line(call("quantise", runs["pruned"], *options, "-q"))
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]


def test_a_network_that_is_rounded_already_is_refused(tmp_path: Path) -> None:
    rounded = {"rounded": {"defenses": [{"name": "quantise", "bits": 8}]}}
    model = {"name": "mlp", "hidden": [8]}
    run = trained(tmp_path, model=model, attacks={"fgsm": "fgsm"}, runs=rounded)["rounded"]
    said = one_line(call("quantise", run, "-o", tmp_path / "a.onnx"))
    assert said.endswith("expected a network in float32, got one that the defense quantise has rounded")


def test_a_network_that_cannot_be_exported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quantise_odd.py").write_text(ODD)
    monkeypatch.chdir(tmp_path)
    said = one_line(call("quantise", "quantise_odd:net", "--dataset", "digits", "-o", "a.onnx"))
    assert said.startswith("torch cannot export this network")
    said = one_line(call("quantise", "quantise_odd:bare", "--dataset", "digits", "-o", "a.onnx"))
    assert (
        said == "quantise_odd:bare: expected a network of convolutions and linear layers, got one without any"
    )
    assert not Path("a.onnx").exists()


def test_a_network_that_is_none_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    assert "expected a run's folder" in one_line(call("quantise", "nothing", "-o", tmp_path / "a.onnx"))
    copied = tmp_path / "run"
    shutil.copytree(runs["pruned"], copied)
    (copied / "model.safetensors").write_bytes(b"no weights")
    assert "changed since it was trained" in one_line(call("quantise", copied, "-o", tmp_path / "a.onnx"))
    assert not (tmp_path / "a.onnx").exists()
