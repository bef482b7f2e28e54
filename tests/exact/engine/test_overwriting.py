"""ReLU layers that write over their input: only where nothing else reads it, and never another number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_sparse.engine import fast
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.engine.overwriting import overwriting_relus
from robustbench_sparse.models import MODELS


class Several(nn.Module):
    """Activations of every kind; (B, 3, 8, 8) -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.then = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.alone, self.read_twice, self.of_a_sum, self.of_the_image = (nn.ReLU() for _ in range(4))
        self.called_twice, self.leaky = nn.ReLU(), nn.LeakyReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.alone(self.norm(self.conv(self.of_the_image(x))))
        out = self.called_twice(self.then(out))
        twice = self.then(nn.functional.pad(out, (1, 1, 1, 1)))
        out = self.read_twice(twice) + twice
        out = self.of_a_sum(out) + self.called_twice(out)
        logits: Tensor = self.leaky(out).mean((2, 3))
        return logits


def test_only_what_a_layer_made_for_it_alone_is_overwritten() -> None:
    assert overwriting_relus(Several().eval()) == ["alone"]


def test_of_a_preactivation_network_all_are_overwritten() -> None:
    model = MODELS["preact_resnet"]().build(3, 32, 10)
    assert len(overwriting_relus(model)) == sum(isinstance(m, nn.ReLU) for m in model.modules()) == 19


def test_a_hook_that_sees_the_input_keeps_it() -> None:
    model = Several().eval()
    model.norm.register_forward_hook(lambda *_: None)
    assert overwriting_relus(model) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["several", "preact_resnet", "resnet18", "vgg16"])
def test_logits_and_gradients_stay_bit_for_bit(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Several() if name == "several" else _built(name)
    model.train()(torch.rand(16, 3, 8, 8))
    model.eval()
    x = torch.rand(8, 3, 8, 8)
    quick = FastNetwork(model, precision=precision)  # type: ignore[arg-type]
    monkeypatch.setattr(fast, "overwriting_relus", lambda _: [])
    plain = FastNetwork(model, precision=precision)  # type: ignore[arg-type]
    assert any(m.inplace for m in quick.modules() if isinstance(m, nn.ReLU))
    assert not any(m.inplace for n in (model, plain) for m in n.modules() if isinstance(m, nn.ReLU))
    for ours, theirs in zip(_pass(quick, x), _pass(plain, x), strict=True):
        assert torch.equal(ours, theirs)
        assert bool(ours.any())


def _built(name: str) -> nn.Module:
    small: dict[str, Any] = {"depth": 8, "widths": (4, 4, 8)} if name == "preact_resnet" else {"width": 4}
    return MODELS[name](**small).build(3, 8, 5)


def _pass(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    point = x.clone().requires_grad_(True)
    out = network(point)
    return out.detach(), torch.autograd.grad(out.logsumexp(1).sum(), point)[0]
