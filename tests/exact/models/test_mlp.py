"""The residual layers of an mlp against their formula; what a plain one is stays what it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robustbench_sparse.config import plugins
from robustbench_sparse.models.mlp import MLP, ResidualLayer
from robustbench_sparse.models.skips import SkipLayer


def build(seed: int = 3, **settings: object) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(**settings).build(1, 8, 4)  # type: ignore[arg-type]


def test_a_residual_layer_is_the_theses_formula() -> None:
    """w z + sigma(W z + b), where a layer is as wide as its input; sigma(W z + b) elsewhere."""
    network = build(hidden=(6, 6, 5, 5), activation="tanh", residual=0.5)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    residual = [m for m in network.modules() if isinstance(m, ResidualLayer)]
    assert [len(m.weight) for m in layers] == [6, 6, 5, 5, 4]
    with torch.no_grad():
        residual[1].skip.fill_(-2)  # type: ignore[union-attr]
    x = torch.rand(3, 1, 8, 8)
    z1 = layers[0](x.flatten(1)).tanh()
    z2 = 0.5 * z1 + layers[1](z1).tanh()
    z3 = layers[2](z2).tanh()
    z4 = -2 * z3 + layers[3](z3).tanh()
    torch.testing.assert_close(network(x), layers[4](z4))


def test_the_first_layer_has_a_skip_where_it_is_as_wide_as_the_image() -> None:
    network = build(hidden=(64,), residual=1.0)
    first, last = (m for m in network.modules() if isinstance(m, nn.Linear))
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(network(x), last(x.flatten(1) + first(x.flatten(1)).relu()))


def test_w_is_trained() -> None:
    network = build(hidden=(6, 6), residual=1.0)
    skips = {name: p for name, p in network.named_parameters() if name.endswith("skip")}
    assert list(skips) == ["3.skip"]
    network(torch.rand(3, 1, 8, 8)).square().sum().backward()
    assert skips["3.skip"].grad is not None
    assert skips["3.skip"].grad.abs() > 0


def test_batch_norm_stands_inside() -> None:
    network = build(hidden=(6, 6), residual=1.0, batch_norm=True)
    (layer,) = (m for m in network.modules() if isinstance(m, ResidualLayer))
    assert [type(m) for m in layer.inner.children()] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]


def test_w_of_0_is_the_plain_network() -> None:
    plain, residual = build(hidden=(6, 6, 6)), build(hidden=(6, 6, 6), residual=0.0)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(plain(x), residual(x))  # the same weights were drawn, too


def test_without_it_weights_and_records_keep_their_names() -> None:
    assert list(build(hidden=(6, 6)).state_dict()) == [
        f"{n}.{p}" for n in (1, 3, 5) for p in ("weight", "bias")
    ]
    assert "residual" not in plugins.settings_of(MLP())
    assert plugins.settings_of(MLP(hidden=(6, 6), residual=0.0))["residual"] == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_w_has_to_be_a_number(value: float) -> None:
    with pytest.raises(ValueError, match=r"^residual: expected a finite number or null"):
        MLP(residual=value)


def test_widths_that_all_differ_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^residual: expected null, or a hidden layer as wide .* \[64, 200, 80\]"
    ):
        build(residual=1.0)


def test_keeping_some_skips() -> None:
    layer = SkipLayer([0, 2, 3], 1.0)
    with torch.no_grad():
        layer.skip.copy_(torch.tensor([1.0, 20.0, 300.0]))  # type: ignore[union-attr]
    layer.keep([0, 3])
    xs = [torch.full((2, 2), v) for v in (1.0, 5.0, 5.0, 2.0)]
    assert torch.equal(layer.with_skips(torch.zeros(2, 2), xs), torch.full((2, 2), 601.0))
    for wrong in ([2], [0, 0]):
        with pytest.raises(ValueError, match="some of the sources"):
            layer.keep(wrong)
    layer.keep([])
    assert list(layer.parameters()) == []
    assert torch.equal(layer.with_skips(torch.ones(2, 2), xs), torch.ones(2, 2))
