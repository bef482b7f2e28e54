"""The command shrink on trained runs of networks with skips: one that restores, one that classifies."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.runs.shrunk_file import load_shrunk
from robustbench_sparse.runs.targets import resolve_target
from robustbench_sparse.sparsity.shrink.surgery import Shrunk, shrink_network
from tests.helpers.commands import call
from tests.helpers.small import small

pytest.importorskip("torch_pruning")

ROWS: dict[str, Any] = {
    "optimizer": {
        "name": "adabreg",
        "lr": 0.01,
        "lam": 0.1,
        "linear": {"name": "group_lasso", "group": "row", "weighted": True},
        "groups": [{"match": "*skip", "regulariser": "zero"}],
    }
}
START = [{"name": "sparse_init", "density": 0.3, "linear": "row", "bias": "positive"}]


def trained(out: Path, epochs: int = 1, **changes: Any) -> Path:
    config = small(train={"epochs": epochs, "batch_size": 32, **ROWS}, evaluation={"limit": 8}, **changes)
    torch.set_num_threads(1)
    run_benchmark(config, out=out, device="cpu")
    (folder,) = (out / "small" / "runs").iterdir()
    return folder


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("restorer"),
        task={"name": "restore", "noise": 0.2},
        attacks={"pgd": {"name": "pgd_mse", "steps": 1}},
        runs={"rows": {"model": {"name": "dense_residual", "layers": 3}, "defenses": START}},
    )


def test_a_restorer_without_skips_left_becomes_an_autoencoder(restorer: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    result = call("shrink", restorer, "-o", path)
    assert result.exit_code == 0, result.output
    report = json.loads(path.with_suffix(".json").read_text())
    assert {name: after for name, (_, after) in report["removed"].items() if name.endswith("skip")} == {
        f"layers.{i}.skip": 0 for i in range(3)
    }
    assert report["removed"]["layers.0.linear"][1] < 64
    assert report["after"]["parameters"] < 0.8 * report["before"]["parameters"]
    assert report["proof"]["images"] == 450
    assert report["proof"]["difference"] <= report["proof"]["allowed"]
    x = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        expected = resolve_target(restorer).model(x)
        torch.testing.assert_close(load_shrunk(path)(x), expected, rtol=1e-5, atol=1e-5)
    assert "layers.0.linear" in call("sparsity", path).stdout


def test_a_wrong_image_is_refused_and_nothing_written(
    restorer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def wrong(model: torch.nn.Module, x: torch.Tensor) -> Shrunk:
        found = shrink_network(model, x)
        with torch.no_grad():
            next(p for name, p in found.model.named_parameters() if name.endswith("bias"))[0] += 1
        return found

    monkeypatch.setattr("robustbench_sparse.shrinking.shrink_network", wrong)
    result = call("shrink", restorer, "-o", tmp_path / "small.safetensors")
    assert result.exit_code == 2
    assert "nothing was written" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_shrunk_residual_mlp_is_judged_like_the_run(tmp_path: Path) -> None:
    model = {"name": "mlp", "hidden": [30, 30, 30], "residual": 1.0}
    folder = trained(
        tmp_path, runs={"w": {"model": model, "defenses": START}}, attacks={"fgsm": "fgsm"}, epochs=4
    )
    path = tmp_path / "small.safetensors"
    assert call("shrink", folder, "-o", path).exit_code == 0
    rows = []
    for target in (folder, path):
        judged = call(
            "evaluate", target, "--attacks", "fgsm", "--limit", 64, "--format", "csv", "--data-root", tmp_path
        )
        assert judged.exit_code == 0, judged.output
        rows += list(csv.DictReader(io.StringIO(judged.stdout)))
    assert rows[0]["clean"] == rows[1]["clean"]
    assert rows[0]["fgsm"] == rows[1]["fgsm"]
