"""Every benchmark file of the project: it is read, its networks fit its images, its optimizers build."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attacks import NAttack
from defenses import EnResNet
from defenses.base import prunable
from robustbench_sparse.config.load import load
from robustbench_sparse.config.plan import Plan
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
    channels, size, count = IMAGES[plan.dataset_name]
    for run in plan.runs:
        defenses, classes = [d.build() for d in run.defenses], run.task.classes(count)
        with torch.device("meta"):
            model = build_network(run.model, defenses, channels, size, classes, seed=0)
        for stage in run.stages if list(model.parameters()) else ():
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


def steered(plan: Plan) -> list[str]:
    """Rows whose lambda is steered for a share of zeros."""
    return [
        run.label
        for run in plan.runs
        if any(
            getattr(defense, setting, None) is not None
            for defense in (d.build() for d in run.defenses)
            for setting in ("target", "target_sparsity")
        )
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_is_called_published_is_the_published(path: Path) -> None:
    plan = load(path)
    for run in plan.runs:
        published = run.label in plan.published or run.label.endswith("_published")
        scales = [d.scale for d in (p.build() for p in run.defenses) if isinstance(d, EnResNet)]
        assert scales == ["batch"] * len(scales) or not published
    if set(steered(plan)) & set(plan.published):
        head = path.read_text().partition("\nname:")[0]
        assert "steered for the published share" in head, "a goal, and not the published lambda"


def test_the_nattack_column_of_table_4_5_is_complete() -> None:
    (path,) = (p for p in CONFIGS if p.stem == "cifar10_dinh_4_5")
    plan = load(path)
    (attack,) = (a.attack for a in plan.attacks if a.label == "nattack")
    assert attack == NAttack(samples=300, steps=600, sigma=0.1, learning_rate=0.02)
    assert {run.label for run in plan.runs} == {
        run for run, row in plan.published.items() if "nattack" in row
    }
    assert plan.published["en5+rgsm_2e-2"]["nattack"] == 48.23


def test_slimmed_networks_of_table_4_3_are_trained_from_scratch() -> None:
    (path,) = (p for p in CONFIGS if p.stem == "cifar10_dinh_4_3")
    for run in load(path).runs:
        anew = [getattr(d, "reinitialise", False) for d in (p.build() for p in run.defenses)]
        wanted = run.label in ("slimming_50", "slimming_60", "slimming_70", "l1_filter_64_scratch")
        assert any(anew) == wanted
        if wanted:
            first, second = (stage.record() for stage in run.stages)
            assert first == second, "as long and as fast as the first time"
