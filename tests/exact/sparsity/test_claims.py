"""Claims of zeros against counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from robustbench_sparse.sparsity.claims import against_asked, refusal
from robustbench_sparse.sparsity.counting import count_sparsity


def network() -> nn.Module:
    """10 of 40 weights of the first layer are zero, none of the 80 of the second; a row of the first, too."""
    first, second = nn.Linear(8, 5), nn.Linear(5, 16)
    nn.init.ones_(first.weight)
    nn.init.ones_(second.weight)
    with torch.no_grad():
        first.weight[0] = 0
        first.weight[1, :2] = 0
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)


def counted(**asked: Any) -> dict[str, Any]:
    counts = count_sparsity(network(), 2, 2)
    meant = {
        "defense": "prune",
        "kind": "weight",
        "percent": 25.0,
        "binding": True,
        "names": ["1.weight"],
        **asked,
    }
    return {**counts, "asked": against_asked([meant], counts["layers"])}


def test_achieved_is_counted_in_the_layers_asked_of() -> None:
    assert counted()["asked"][0]["achieved"] == 25.0
    assert counted(names=["1.weight", "3.weight"])["asked"][0]["achieved"] == pytest.approx(100 * 10 / 120)
    assert counted(kind="row")["asked"][0]["achieved"] == 20.0
    assert counted(names=["nothing.weight"])["asked"][0]["achieved"] == 0.0


def test_what_was_asked_for_has_to_be_there() -> None:
    assert refusal({}, counted()) == ""
    assert refusal({}, counted(percent=27.0)) == ""  # a weight is 2.5 points of that layer
    text = refusal({}, counted(percent=28.0))
    assert "prune was asked for 28 % of the weights, the saved file has 25.00 %" in text
    assert refusal({}, counted(percent=28.0, binding=False)) == ""
    assert refusal({}, counted(percent=10.0)) == ""  # more zeros than asked for are no lie


@pytest.mark.parametrize("name", ["weight_sparsity", "linear_sparsity", "row_sparsity"])
def test_a_claim_has_to_be_what_is_counted(name: str) -> None:
    counts = counted()
    assert refusal({name: counts[name]}, counts) == ""
    assert refusal({name: counts[name] + 0.09}, counts) == ""
    for wrong in (0.2, -0.2):
        assert f"{name} {counts[name] + wrong:.2f} % is claimed" in refusal(
            {name: counts[name] + wrong}, counts
        )
    assert "is claimed, the saved file has 0.00 %" in refusal({"channel_sparsity": 50.0}, counts)
    assert refusal({"channel_sparsity": None, "epoch": 3.0}, counts) == ""
