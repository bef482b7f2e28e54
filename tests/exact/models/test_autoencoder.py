"""The autoencoder's layers, and what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustbench_sparse.models.autoencoder import Autoencoder


def test_it_has_the_papers_layers() -> None:
    network = Autoencoder().build(1, 28, None)
    shapes = {name: tuple(m.weight.shape) for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    assert shapes == {f"layer{i}": (784, 784) for i in range(1, 7)}
    assert [type(m).__name__ for m in network.children()].count("ReLU") == 5


def test_it_is_linear_layers_with_activations_between() -> None:
    torch.manual_seed(0)
    network = Autoencoder(hidden=1, width=5, activation="tanh", last_activation="sigmoid").build(2, 8, None)
    x = torch.rand(3, 2, 8, 8)
    first, second = (m for m in network.modules() if isinstance(m, nn.Linear))
    expected = second(first(x.flatten(1)).tanh()).sigmoid().view_as(x)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"hidden": 0}, "hidden"), ({"width": 0}, "width"), ({"activation": "x"}, "activation"),
     ({"last_activation": "x"}, "last_activation")],
)  # fmt: skip
def test_a_bad_setting_is_refused(settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        Autoencoder(**settings)  # type: ignore[arg-type]
