"""A stand-in only proposes: what counts as fooled is what fools the network itself, in float32."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import CW, FGSM, IFGSM, PGD
from attacks.base import Attack, Threat, exact_of
from attacks.iterate import questioned, stretch
from attacks.losses import margin
from defenses import EnResNet
from robustbench_sparse.engine import fast as module
from robustbench_sparse.engine.fast import (
    FastNetwork,
    FastTraining,
    attack_and_confirm,
    compiled,
    unconfirmed,
)
from robustbench_sparse.judging.judge import PassCounter
from robustbench_sparse.models import MODELS
from tests.helpers.attack_models import digits_net as digits_net_double
from tests.helpers.attack_models import linear_net, streams


def digits_net() -> tuple[nn.Module, Tensor, Tensor]:
    net, x, y = digits_net_double()
    return copy.deepcopy(net).float(), x.float(), y


THREAT = Threat(eps=0.1)


class Liar(nn.Module):
    """Gives the network's logits with the sign turned for some images: what those are taken for is wrong."""

    def __init__(self, exact: nn.Module, share: float = 1.0) -> None:
        super().__init__()
        self.__dict__["exact"] = exact
        self.share = share
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.exact(x)
        lied = (torch.arange(len(x)) < self.share * len(x)).view(-1, 1)
        return torch.where(lied, -out, out)


def test_the_stand_in_is_close_and_leaves_the_network_alone() -> None:
    net, x, _ = digits_net()
    net = copy.deepcopy(net).train()
    before = copy.deepcopy(net.state_dict())
    twin = FastNetwork(net, precision="bf16")
    assert twin.exact is net
    assert exact_of(twin) is net
    assert net.training, "the network may be in training: its mode is not the copy's to set"
    assert not twin.training
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in twin.parameters())
    net.eval()
    out = twin(x)
    assert out.dtype == torch.float32
    error = (out - net(x)).abs().max()
    assert 0 < error < 0.05 * net(x).std(), "bfloat16 is near, and not the same"
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=5), IFGSM(steps=5, keep="last"), CW(steps=20, search_steps=2)], ids=repr
)
def test_what_only_the_stand_in_gets_wrong_is_attacked_again(attack: Attack) -> None:
    net, x, y = digits_net()
    x, y = x[:40], y[:40]
    fooled = attack_and_confirm(attack, net, x, y, THREAT, streams(40))
    through = attack_and_confirm(attack, Liar(net), x, y, THREAT, streams(40))
    for candidate, correct in (fooled, through):
        assert torch.equal(correct, net(candidate).argmax(1) == y), "verdicts are the network's own"
    # The liar calls every image fooled at once; all that are not are attacked on the network, from their start.
    assert torch.equal(fooled[1], through[1])


def test_unconfirmed_names_exactly_the_contradictions() -> None:
    net, x, y = digits_net()
    x, y = x[:40], y[:40]
    correct = net(x).argmax(1) == y
    assert correct.sum() > 30
    rows = unconfirmed(Liar(net, share=1.0), x, y, correct)
    assert rows.tolist() == correct.nonzero().flatten().tolist()
    assert unconfirmed(net, x, y, correct).tolist() == [], "a network confirms itself"
    assert unconfirmed(Liar(net), x, y, torch.zeros_like(correct)).tolist() == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bfloat16_finds_what_float32_finds(precision: Any) -> None:
    net, x, y = digits_net()
    plain = attack_and_confirm(PGD(steps=10), net, x, y, THREAT, streams(len(x)))[1]
    quick = attack_and_confirm(
        PGD(steps=10), FastNetwork(net, precision=precision), x, y, THREAT, streams(len(x))
    )[1]
    assert 0.05 < plain.float().mean() < 0.95
    assert (plain != quick).float().mean() <= 0.01


def test_smallest_perturbations_hold_on_the_network_itself() -> None:
    net, x, y = digits_net()
    x, y, threat = x[:64], y[:64], Threat(norm="l2", eps=3.0)
    twin = FastNetwork(net, precision="bf16")
    attack = CW(steps=60, search_steps=4)
    quick, plain = (attack(n, x, y, threat, streams(64)) for n in (twin, net))
    assert (net(plain).argmax(1) != y).all()
    assert (net(quick).argmax(1) != y).all(), "without the last stretch, some end before the boundary"
    ratio = threat.size(quick - x).median() / threat.size(plain - x).median()
    assert 0.9 < ratio < 1.1


def test_stretch_goes_as_far_as_it_must_and_no_farther() -> None:
    net = linear_net(2, 6)
    x = torch.full((3, 6), 0.5, dtype=torch.float64)
    y = net(x).argmax(1)
    gap = -margin(net(x), y)
    dw = net[1].weight[1 - y] - net[1].weight[y]
    boundary = 0.999 * gap[:, None] * dw / dw.square().sum(1, keepdim=True)  # just short of fooling
    start = x + boundary * torch.tensor([1.0, 0.985, 0.5], dtype=torch.float64)[:, None]
    end = stretch(net, x, start, margin, y)
    factor = ((end - x) / (start - x)).mean(1)
    assert factor.tolist() == pytest.approx([1.005, 1.02, 1.0])
    assert (net(end).argmax(1) != y).tolist() == [True, True, False]
    assert torch.equal(end[2], start[2]), "what no stretch saves stays as it was found"


def test_a_pass_counter_shows_the_network_behind_the_stand_in() -> None:
    net, x, _ = digits_net()
    counter = PassCounter(FastNetwork(net, precision="bf16"))
    exact = exact_of(counter)
    assert exact is not None
    assert torch.equal(exact(x), net(x))
    assert counter.forwards == len(x)
    assert exact_of(PassCounter(net)) is None


# Compiling ----------------------------------------------------------------------------------------------


def resnet(members: int = 1) -> nn.Module:
    torch.manual_seed(0)
    make = MODELS["preact_resnet"](depth=8, widths=(4, 4, 8)).build
    wrapped = (
        EnResNet(members=members).wrap(lambda: make(1, 8, 10)) if members > 1 else lambda: make(1, 8, 10)
    )
    return wrapped().eval()


def test_compiled_gradients_are_the_eager_ones_for_every_batch_size() -> None:
    net, x, y = digits_net()
    quick = FastNetwork(net, precision="fp32", compile=True)
    quick.warm_up(x)
    assert quick.note == ""
    assert quick.is_compiled
    for count in (len(x), 7, 1):
        for network in (net, quick):
            point = x[:count].clone().requires_grad_(True)
            loss = nn.functional.cross_entropy(network(point), y[:count])
            found = torch.autograd.grad(loss, point)[0]
            if network is net:
                expected = found
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_random_networks_are_compiled_block_by_block_around_their_noise() -> None:
    net = resnet(members=2)
    shell = compiled(net, lambda _: True)
    regions = [name for name, m in shell.named_modules() if isinstance(m, module.Region)]
    assert len(regions) == 6
    assert all(name.endswith(".block") for name in regions)
    assert {id(p) for p in shell.parameters()} == {id(p) for p in net.parameters()}, "the layers are shared"
    assert net.state_dict().keys() == resnet(members=2).state_dict().keys(), "and the network stays as it was"
    assert not any(isinstance(m, module.Region) for m in net.modules())


def test_answers_are_compiled_where_they_are_asked_for_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted:
        """What torch.compile returns: the module, and how often it was used."""

        calls = 0

        def __init__(self, module: nn.Module) -> None:
            self.module = module

        def __call__(self, x: Tensor) -> Tensor:
            Counted.calls += 1
            out: Tensor = self.module(x)
            return out

    monkeypatch.setattr(torch, "compile", Counted)
    net, x, _ = digits_net()
    quick = FastNetwork(net, precision="fp32", compile=True)
    with torch.no_grad():
        quick(x)
        assert Counted.calls == 0
        with questioned(quick):
            assert torch.equal(quick(x), net(x))
            assert Counted.calls == 1
            quick(x[:1])
            assert Counted.calls == 1, "a single image is not worth it"
        quick(x)
    assert Counted.calls == 1


def test_answers_that_cannot_be_compiled_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", _Broken)
    net, x, _ = digits_net()
    quick = FastNetwork(net, precision="fp32", compile=True)
    with torch.no_grad(), questioned(quick):
        assert torch.equal(quick(x), net(x))
        assert torch.equal(quick(x), net(x))


class _Broken:
    """What torch.compile returns where there is no working compiler."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        raise RuntimeError("no C++ compiler")


def test_where_compiling_fails_the_eager_network_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", _Broken)
    net, x, _ = digits_net()
    quick = FastNetwork(net, precision="fp32", compile=True)
    quick.warm_up(x)
    assert "no C++ compiler" in quick.note
    assert not quick.is_compiled
    point = x.clone().requires_grad_(True)
    assert torch.allclose(quick(point), net(x), atol=1e-5)

    model = resnet().train()
    before = copy.deepcopy(model.state_dict())
    forward = FastTraining(model, precision="fp32", compile=True)
    small = torch.rand(8, 1, 8, 8)
    forward.warm_up(small)
    assert "no C++ compiler" in forward.note
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"warming up left a trace in {name}"
    assert torch.equal(forward(small), model(small))


def test_warming_up_training_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda m: m)
    model = resnet(members=2)
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    FastTraining(model, precision="bf16", compile=True).warm_up(
        torch.rand(8, 1, 8, 8, generator=torch.Generator())
    )
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_compiled_code_has_a_place_that_outlives_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RBS_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch, "compile", lambda m: m)
    FastNetwork(resnet(), precision="fp32", compile=True)
    import os

    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
