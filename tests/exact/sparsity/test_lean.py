"""What attacks climb on in the place of a network with dead channels: when, why not, and what the records say."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD
from attacks.base import SampleRandom, Threat
from benchmarks.rows_zeros import with_dead_channels
from robustbench_sparse.engine.autotune import Speed
from robustbench_sparse.engine.fast import FastNetwork, attack_and_confirm
from robustbench_sparse.foundation.errors import MissingExtra
from robustbench_sparse.models.preact_resnet import PreActResNet
from robustbench_sparse.sparsity.shrink import lean as module
from robustbench_sparse.sparsity.shrink.lean import PAYS, lean

pytest.importorskip("torch_pruning")

WIDE, NARROW = (8, 8, 16), (2, 2, 4)


def made(widths: tuple[int, ...], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PreActResNet(depth=8, widths=widths).build(3, 8, 5)
        x = torch.rand(64, 3, 8, 8)
        model.train()(x)  # statistics that are not those of a new network
        with torch.no_grad():  # and every class has its images
            last(model).bias.sub_(model.eval()(x).mean(0))
    return model


def last(model: nn.Module) -> nn.Linear:
    layer = model.get_submodule("linear")
    assert isinstance(layer, nn.Linear)
    return layer


@pytest.fixture
def narrow() -> nn.Module:
    return made(NARROW)


@pytest.fixture
def wide(narrow: nn.Module) -> nn.Module:
    """Three quarters of its channels are dead."""
    return with_dead_channels(narrow, made(WIDE, 1))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def widths_of(model: nn.Module) -> list[int]:
    return [len(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_dead_channels_go_and_the_function_stays(wide: nn.Module, narrow: nn.Module, x: Tensor) -> None:
    before = copy.deepcopy(wide.state_dict())
    found = lean(wide, x)
    assert found.model is not None
    assert found.why == ""
    assert widths_of(found.model) == widths_of(narrow)
    torch.testing.assert_close(found.model(x), wide(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(wide(x), narrow(x), atol=1e-5, rtol=0)
    # A stem of 3 -> 2, 2 -> 2 and 2 -> 4 channels where there were 3 -> 8, 8 -> 8 and 8 -> 16.
    assert found.macs_left < 0.12
    assert all(torch.equal(a, b) for a, b in zip(before.values(), wide.state_dict().values(), strict=True))


def test_nothing_dead_too_little_saved_and_dense_leave_the_network_alone(wide: nn.Module, x: Tensor) -> None:
    assert lean(wide, x, "dense").model is None
    assert "no dead channels" in lean(made(WIDE), x).why
    nearly = with_dead_channels(made((8, 8, 15)), made(WIDE, 1))
    left = lean(nearly, x, "shrunk")
    assert left.model is not None
    assert PAYS < left.macs_left < 1
    assert lean(nearly, x).model is None
    assert "% of the multiply-accumulates are left" in lean(nearly, x).why


def test_another_function_is_refused(wide: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "differences", lambda *_: (0.5, 1e-4))
    assert "off by 5.0e-01" in lean(wide, x, "shrunk").why


class Opaque(nn.Module):
    """A network whose forward pass cannot be traced."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if float(x.sum()) > -1 else x


def test_what_cannot_be_traced_or_is_not_installed_says_so(
    wide: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cannot be traced" in lean(Opaque(wide), x, "shrunk").why
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert "torch-pruning is not installed" in lean(wide, x).why
    with pytest.raises(MissingExtra):
        lean(wide, x, "shrunk")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attacks_climb_on_the_small_network_and_the_wide_one_judges(
    wide: nn.Module, x: Tensor, precision: str
) -> None:
    speed = Speed(precision=precision, engine="shrunk", macs_left=0.1)  # type: ignore[arg-type]
    stand_in, note = speed.stand_in(wide, x, lean(wide, x).model)
    assert (note, stand_in is not None) == ("", True)
    assert stand_in is not None
    assert stand_in.is_shrunk
    assert stand_in.exact is wide
    assert max(widths_of(stand_in.twin)) == max(NARROW)
    assert widths_of(stand_in.refresh().twin) == widths_of(stand_in.twin)
    y = wide(x).argmax(1)
    attack, threat = PGD(steps=5), Threat(eps=0.01)
    streams = [SampleRandom.for_images(0, "a", range(len(y))) for _ in range(2)]
    found, right = attack_and_confirm(attack, stand_in, x, y, threat, streams[0])
    assert torch.equal(wide(found).argmax(1) == y, right)  # the verdicts are the network's own
    dense = FastNetwork(wide, precision=precision)  # type: ignore[arg-type]
    assert not dense.is_shrunk
    _, other = attack_and_confirm(attack, dense, x, y, threat, streams[1])
    assert 0 < int((~right).sum()) < len(y)
    assert int((right != other).sum()) <= 1  # a batch of 24: rounding may turn one of them


def test_what_only_the_small_network_gets_wrong_is_attacked_again_on_the_wide_one(
    wide: nn.Module, narrow: nn.Module, x: Tensor
) -> None:
    with torch.no_grad():
        # Not the same function: one class has the upper hand wherever the network itself says another.
        last(narrow).bias.add_(torch.tensor([0.0, 0, 0, 0, 3]))
    y = wide(x).argmax(1)
    wrong = FastNetwork(wide, precision="fp32", source=narrow)
    assert bool((wrong(x).argmax(1) != y).any())
    threat, attack = Threat(eps=0.01), PGD(steps=3)
    found, right = attack_and_confirm(attack, wrong, x, y, threat, SampleRandom.for_images(0, "b", range(24)))
    assert torch.equal(wide(found).argmax(1) == y, right)
    assert bool(right.any())
