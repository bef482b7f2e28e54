"""The dense residual network against its formula, written out."""

from __future__ import annotations

import pytest
import torch

from robustbench_sparse.models.dense_residual import DenseResidual, DenseResidualModule


def build(classes: int | None, **settings: object) -> DenseResidualModule:
    torch.manual_seed(3)
    network = DenseResidual(**settings).build(1, 8, classes)  # type: ignore[arg-type]
    assert isinstance(network, DenseResidualModule)
    with torch.no_grad():
        for layer in network.layers:
            if layer.skip is not None:
                layer.skip.normal_()
    return network


def test_it_is_the_papers_recursion() -> None:
    network = build(None, layers=3, activation="relu")
    x = torch.rand(5, 1, 8, 8)
    xs = [x.flatten(1)]
    for number, layer in enumerate(network.layers):
        assert layer.sources == list(range(number + 1))
        out = (xs[number] @ layer.linear.weight.T + layer.linear.bias).relu()
        for i in range(number + 1):
            out = out + layer.skip[i] * xs[i]
        xs.append(out)
    torch.testing.assert_close(network(x), xs[3].view(5, 1, 8, 8))


def test_skips_start_at_zero_and_then_it_is_a_plain_network() -> None:
    network = DenseResidual(layers=2, activation="tanh").build(1, 8, None)
    x = torch.rand(2, 1, 8, 8)
    expected = x.flatten(1)
    for layer in network.layers:  # type: ignore[union-attr]
        assert not layer.skip.any()
        expected = layer.linear(expected).tanh()
    torch.testing.assert_close(network(x), expected.view_as(x))


def test_only_layers_of_one_width_are_joined() -> None:
    restoring = build(None, layers=4, width=16)
    # 64 - 16 - 16 - 16 - 64
    assert [layer.sources for layer in restoring.layers] == [[], [1], [1, 2], [0]]
    assert [name for name, _ in restoring.named_parameters() if name.endswith("skip")] == [
        "layers.1.skip",
        "layers.2.skip",
        "layers.3.skip",
    ]
    classifying = build(4, layers=2)
    assert [layer.sources for layer in classifying.layers] == [[0], [0, 1]]
    assert classifying(torch.rand(3, 1, 8, 8)).shape == (3, 4)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"layers": 0}, "layers"), ({"width": 0}, "width"), ({"activation": "x"}, "activation")],
)
def test_a_bad_setting_is_refused(settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        DenseResidual(**settings)  # type: ignore[arg-type]
