"""Quick stand-ins of networks whose layers are added up or put side by side."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_sparse.engine.batchnorm_folding import pairs_of, stems_of
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.models import MODELS
from robustbench_sparse.models.skips import SkipLayer

NETWORKS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "autoencoder": ("autoencoder", None, {"hidden": 2, "width": 20, "mean": (0.3,)}),
    "dense_residual": ("dense_residual", 5, {"layers": 3}),
    "dense_residual_restores": ("dense_residual", None, {"layers": 3, "width": 20}),
    "densenet": ("densenet", 5, {"layers": 3, "growth": 4, "transition": 2}),
    "densenet_batch_norm": ("densenet", 5, {"layers": 3, "growth": 4, "transition": 2, "batch_norm": True}),
    "mlp_residual": ("mlp", 5, {"hidden": (20, 20, 20), "residual": 0.5, "batch_norm": True}),
}


def build(name: str) -> nn.Module:
    key, classes, settings = NETWORKS[name]
    torch.manual_seed(0)
    network = MODELS[key](**settings).build(1, 8, classes)
    with torch.no_grad():
        network(images(64))  # batch-norm statistics leave their initial values
        for m in network.modules():
            if isinstance(m, SkipLayer) and m.skip is not None:
                m.skip.normal_()
    return network.eval()


def images(count: int = 8) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stand_in_gives_what_the_network_gives(name: str) -> None:
    network, x = build(name), images()
    FastNetwork(network, precision="fp32")
    fast = FastNetwork(
        network, precision="fp32"
    )  # made twice: tracing leaves nothing behind that cannot be copied
    copy.deepcopy(network)
    torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-5)
    rough = FastNetwork(network, precision="bf16")(x)
    assert (rough - network(x)).abs().max() < 0.05 * network(x).abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_it_takes_over_skips_and_statistics(name: str) -> None:
    network, x = build(name), images()
    fast = FastNetwork(network, precision="fp32")
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(1.2)
    assert not torch.allclose(fast(x), network(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fast.refresh()(x), network(x), rtol=1e-4, atol=1e-5)


def test_batch_norm_is_folded_in_front_of_what_is_put_side_by_side() -> None:
    assert pairs_of(build("densenet_batch_norm")) == {f"block.{i}.conv": f"block.{i}.bn" for i in range(3)}
    assert pairs_of(build("mlp_residual")) == {"1": "2", "4.inner.0": "4.inner.1", "5.inner.0": "5.inner.1"}


def test_layers_that_see_the_image_through_a_skip_get_it_in_full_precision() -> None:
    """Each layer of equal width adds the image to what it passes on; the narrow one sees it once."""
    layers = [f"layers.{i}.linear" for i in range(3)]
    assert stems_of(build("dense_residual")) == [*layers, "head"]
    assert stems_of(build("dense_residual_restores")) == layers[:1]
    assert stems_of(build("densenet")) == ["stem"]
    assert stems_of(build("autoencoder")) == ["network.layer1"]
