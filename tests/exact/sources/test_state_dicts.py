"""Weights as others save them: prefixes, nestings, masks; and what is said of those that do not fit."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from robustbench_sparse.foundation.errors import LONGEST, UserError
from robustbench_sparse.sources import state_dicts


def net(classes: int = 3, channels: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, classes)
    )


def other() -> nn.Sequential:
    """Another draw of the same network."""
    model = net()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    return model


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path / "w.pt")
    return path / "w.pt"


def same(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[n], state[n]) for n in own)


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + n: w for n, w in other().state_dict().items()}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (prefixed(""), []),
        (prefixed("module."), ["module. taken off the names"]),
        (
            prefixed("module._orig_mod.model."),
            [
                "_orig_mod. taken out of the names",
                "module. taken off the names",
                "model. taken off the names",
            ],
        ),
        (prefixed("encoder."), ["encoder. taken off the names"]),
        ({"state_dict": prefixed("")}, ["taken from state_dict in the file"]),
        (
            {"checkpoint": 1, "model": {"state_dict": prefixed("module.")}},
            ["taken from model / state_dict in the file", "module. taken off the names"],
        ),
        (
            {"model": net().state_dict(), "ema": {"n_averaged": torch.tensor(3), **prefixed("module.")}},
            [
                "taken from ema in the file",
                "of ema, model in the file the weights are those of ema",
                "module. taken off the names",
            ],
        ),
        (
            {"model": prefixed(""), "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}},
            ["taken from model in the file"],
        ),
        ({n: w for n, w in prefixed("").items() if "num_batches" not in n}, []),
        ({**prefixed(""), "0.total_ops": torch.zeros(1)}, []),
    ],
)
def test_what_stands_around_weights_is_undone_and_said(tmp_path: Path, content: Any, said: list[str]) -> None:
    model = net()
    assert state_dicts.load(model, saved(tmp_path, content)) == said
    assert same(model, other().state_dict())


def test_a_prefix_of_the_networks_own_is_put_before_the_names(tmp_path: Path) -> None:
    model = nn.ModuleDict({"net": net()})
    assert state_dicts.load(model, saved(tmp_path, prefixed(""))) == ["net. put before the names"]
    assert same(model, prefixed("net."))


def test_masks_of_a_file_are_folded(tmp_path: Path) -> None:
    source = other()
    prune.random_unstructured(source[3], "weight", 0.5)
    prune.ln_structured(source[0], "weight", 0.5, n=2, dim=0)
    content, expected = source.state_dict(), {3: source[3].weight.detach(), 0: source[0].weight.detach()}
    assert "3.weight_mask" in content
    model = net()
    assert state_dicts.load(model, saved(tmp_path, content)) == ["pruning masks folded into 2 weights"]
    assert all(torch.equal(model[i].weight, w) for i, w in expected.items())
    assert int((model[3].weight == 0).sum()) == 3 * 4 * 36 // 2
    beside = {**other().state_dict(), "3.weight_mask": content["3.weight_mask"]}
    model = net()
    assert state_dicts.load(model, saved(tmp_path, beside)) == ["pruning masks folded into 1 weights"]
    assert torch.equal(model[3].weight, expected[3])


def test_a_weight_that_is_not_finite_under_a_mask_is_zero(tmp_path: Path) -> None:
    content = other().state_dict()
    content["3.weight"][0, 0] = torch.inf
    mask = torch.ones_like(content["3.weight"])
    mask[0, 0] = 0
    model = net()
    state_dicts.load(model, saved(tmp_path, {**content, "3.weight_mask": mask}))
    assert model[3].weight[0, 0] == 0


def test_a_network_with_masks_of_its_own_is_filled_and_folded(tmp_path: Path) -> None:
    source, model = other(), net()
    for m in (source, model):
        prune.random_unstructured(m[3], "weight", 0.5)
    expected = source[3].weight.detach().clone()
    assert state_dicts.load(model, saved(tmp_path, source.state_dict())) == [
        "pruning masks folded into 1 weights"
    ]
    assert torch.equal(model[3].weight, expected)
    assert isinstance(model[3].weight, nn.Parameter)


def test_the_users_own_network_keeps_its_masks() -> None:
    model = net().eval()
    assert state_dicts.folded_copy(model) == (model, [])
    prune.random_unstructured(model[3], "weight", 0.5)
    model(torch.rand(1, 1, 8, 8))
    twin, notes = state_dicts.folded_copy(model)
    assert notes == ["pruning masks folded into 1 weights"]
    assert prune.is_pruned(model)
    assert not prune.is_pruned(twin)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(x), twin(x))
    assert isinstance(twin.get_submodule("3").weight, nn.Parameter)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (net(5).state_dict(), "the file's network has 5 classes: build it with as many, and --classes"),
        (net(3, 2).state_dict(), "takes images of 2 channels"),
        (
            {"0.mean": torch.tensor([0.5]), "0.std": torch.tensor([0.25]), **prefixed("1.")},
            "a normalisation of its own (0.mean = 0.5, 0.std = 0.25)",
        ),
        (
            {n.replace("3.", "head."): w for n, w in prefixed("").items()},
            "the file has head.weight where the network has 3.weight: rename",
        ),
        ({n: w for n, w in prefixed("").items() if "3." not in n}, "the file holds a part of the network"),
        ({**prefixed(""), "4.weight": torch.zeros(1)}, "the network lacks layers that the file has"),
        ({"epoch": 3, "best": 0.9}, "it holds epoch, best; save them alone"),
        ({}, "it holds nothing"),
    ],
)
def test_what_does_not_fit_shows_the_cure(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        state_dicts.load(net(), saved(tmp_path, content))
    assert said in str(caught.value)
    assert len(str(caught.value)) <= LONGEST


def test_a_file_with_a_network_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could run code"):
        state_dicts.load(net(), saved(tmp_path, {"model": net()}))


def test_classes_and_channels_are_told_from_shapes() -> None:
    own = net().state_dict()
    assert state_dicts.sizes_of(own, own) == (None, None)
    assert state_dicts.sizes_of(net(7, 3).state_dict(), own) == (7, 3)
    odd = copy.deepcopy(own)
    odd["3.weight"] = torch.zeros(9, 9)
    assert state_dicts.sizes_of(odd, own) == (None, None)
