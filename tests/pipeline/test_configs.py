"""Every benchmark file of the project: it is read, its networks fit its images, its optimizers build."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from defenses.base import prunable
from robustbench_sparse.config.load import load
from robustbench_sparse.models.build import build_network

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
# Channels, side and classes of what they run on; the JPEG folder is CIFAR-10.
IMAGES = {
    "digits": (1, 8, 10),
    "mnist": (1, 28, 10),
    "fashion_mnist": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "image_folder": (3, 32, 10),
    "cifar100": (3, 32, 100),
}


def test_there_are_configs() -> None:
    assert {"quickstart", "mnist_bregman", "cifar10_dinh_4_4"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_networks_fit_and_optimizers_build(path: Path) -> None:
    plan = load(path)
    assert plan.config.name == path.stem
    shape = IMAGES[plan.dataset_name]
    for run in plan.runs:
        with torch.device("meta"):
            model = build_network(run.model, [d.build() for d in run.defenses], *shape, seed=0)
        for stage in run.stages:
            optimizer = stage.optimizer.build(model)
            held = [id(p) for group in optimizer.param_groups for p in group["params"]]
            assert sorted(held) == sorted(id(p) for p in model.parameters())
            stage.schedule.build(optimizer, stage.config.epochs, 10)
        for defense in run.defenses:
            asked = defense.build().asked(model)
            assert asked is None or set(asked.names) <= set(prunable(model))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_command_to_run_it_stands_in_its_head(path: Path) -> None:
    text = path.read_text()
    assert f"robustbench-sparse run configs/{path.name}" in text or path.stem == "quickstart"
