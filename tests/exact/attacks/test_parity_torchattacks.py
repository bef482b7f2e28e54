"""The same images as torchattacks 3.5.1 gives, from the same network and start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn
from torchvision.datasets import MNIST

from attacks import FGSM, IFGSM, PGD, Threat
from attacks.base import Attack
from tests.helpers.attack_models import digits_net, streams

EPS, ALPHA, STEPS, EPS2, ALPHA2 = 0.1, 0.02, 12, 1.0, 0.2


def cube_start(x: Tensor, eps: float) -> Tensor:
    """torchattacks' start in the cube, drawn as it draws it."""
    return (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)


def ball_start(x: Tensor, eps: float) -> Tensor:
    """torchattacks' start in the ball: uniform radius, not uniform volume."""
    delta = torch.empty_like(x).normal_()
    n = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    r = torch.zeros_like(n).uniform_(0, 1)
    return (x + delta * (r / n * eps)).clamp(0, 1)


def pairs(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Ours and theirs for the four attacks they share with us."""
    cube, ball, s = Threat(eps=EPS), Threat(norm="l2", eps=EPS2), streams(len(x))
    iterate = IFGSM(steps=STEPS, step_size=ALPHA, keep="last")
    # PGDL2 adds eps_for_division to each gradient's length, and its gradients are those of the batch's *mean*
    # loss: at 1e-10 that matters in a large batch.
    theirs = {
        "fgsm": torchattacks.FGSM(net, eps=EPS),
        "bim": torchattacks.BIM(net, eps=EPS, alpha=ALPHA, steps=STEPS),
        "pgd": torchattacks.PGD(net, eps=EPS, alpha=ALPHA, steps=STEPS),
        "pgdl2": torchattacks.PGDL2(net, eps=EPS2, alpha=ALPHA2, steps=STEPS, eps_for_division=1e-30),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = cube_start(x, EPS)
        torch.manual_seed(0)
        start2 = ball_start(x, EPS2)
    ours = {
        "fgsm": FGSM()(net, x, y, cube, s),
        "bim": iterate(net, x, y, cube, s),
        "pgd": iterate.from_start(net, x, y, cube, start, s),
        "pgdl2": IFGSM(steps=STEPS, step_size=ALPHA2, keep="last").from_start(net, x, y, ball, start2, s),
    }
    out = {}
    for name, attack in theirs.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            out[name] = ours[name].detach(), attack(x, y)
    return out


def test_same_images_on_digits() -> None:
    net, x, y = digits_net()
    for name, (ours, theirs) in pairs(net, x, y).items():
        assert ours.dtype == theirs.dtype == torch.float64
        assert (theirs - x).abs().max() > 0.05, name
        assert (ours - theirs).abs().max() < 1e-6, name


def test_same_images_on_digits_in_float32() -> None:
    """The cube's attacks differ by rounding alone, FGSM and BIM not at all."""
    net, x, y = digits_net()
    for name, (ours, theirs) in pairs(_single(net), x.float(), y).items():
        if name in ("fgsm", "bim"):
            assert torch.equal(ours, theirs), name
        elif name == "pgd":
            assert (ours - theirs).abs().max() < 1e-6, name


def _single(net: nn.Module) -> nn.Module:
    copy = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    copy.load_state_dict({k: v.float() for k, v in net.state_dict().items()})
    return copy


@pytest.mark.parametrize("attack", [FGSM(), IFGSM(), PGD(), PGD(restarts=3, loss="margin")], ids=repr)
def test_defaults_are_not_weaker_than_theirs(attack: Attack) -> None:
    net, x, y = digits_net()
    name = "fgsm" if isinstance(attack, FGSM) else "pgd" if isinstance(attack, PGD) else "bim"
    _, theirs = pairs(net, x, y)[name]
    ours = attack(net, x, y, Threat(eps=EPS), streams(len(x)))
    ours_right, theirs_right = ((net(a).argmax(1) == y).sum() for a in (ours, theirs))
    assert ours_right <= theirs_right


@pytest.mark.data
def test_same_accuracy_on_mnist(data_root: Path) -> None:
    """1000 test images, a network of one epoch: accuracies under all four attacks within 0.1 point."""
    train, test = MNIST(data_root, train=True), MNIST(data_root, train=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
        opt = torch.optim.Adam(net.parameters(), 1e-3)
        images, labels = train.data[:, None].float() / 255, train.targets
        for rows in torch.randperm(len(images)).split(128):
            opt.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            opt.step()
    net.eval()
    x, y = test.data[:1000, None].float() / 255, test.targets[:1000]
    assert (net(x).argmax(1) == y).double().mean() > 0.9
    for name, (ours, theirs) in pairs(net, x, y).items():
        a, b = ((net(adv).argmax(1) == y).sum().item() for adv in (ours, theirs))
        assert abs(a - b) <= 1, f"{name}: {a} and {b} of 1000"
        # Almost all images agree to rounding; on a kink of the ReLU rounding decides a sign.
        same = (ours - theirs).flatten(1).abs().amax(1) < 1e-5
        assert same.double().mean() > 0.98, name
