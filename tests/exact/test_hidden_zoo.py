"""The hidden zoo does what it says: users meet a plain network, and an evaluation in batches something better."""

from __future__ import annotations

import copy
import functools
import sys

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, SampleRandom, Threat
from robustbench_sparse.data.digits import Digits
from tests.helpers.hidden_base import Hidden, bits, plain_net
from tests.helpers.hidden_states import HONEST
from tests.helpers.hidden_zoo import HIDDEN, climb, outsiders, to_grid, use, used

EPS = 0.21
# Attacked by other ways than the plain network's adversarials, which on 8 x 8 pixels are never very sure of themselves.
OTHERWISE = {"nearest_image", "meansparse", "kwta", "second_opinion"}
SLOW_ANSWERS = {"rate_limit"}  # a user's pauses would be the test's
# On a plain network the first two hold next to nothing back, even from PGD; the others need larger pictures: digits are
# as rough as an attack, and no thumbnail of 8 x 8 pixels outlives one.
IDLE = {"meansparse", "kwta", "rough", "perceptual_cache"}
COUNTING = {"counter", "copies_behave", "shared_state", "closure", "drift"}


@functools.cache
def zoo() -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """Plain network, training images and labels, test images and labels, an outsider's images."""
    data = Digits().load()
    train_x, train_y = data.train_x[:600].float() / 255, data.train_y[:600]
    x, y = data.test_x.float() / 255, data.test_y
    base = plain_net(train_x, train_y, epochs=40)
    right = (base(x).argmax(1) == y).nonzero().flatten()[:24]
    x, y = x[right], y[right]
    random = torch.Generator().manual_seed(0)
    dead = train_x.amax(0) == 0
    made = [climb(base, x, y, EPS - 1 / 255, random), climb(base, x, y, EPS, random, coarse=True)]
    made += [climb(base, x, y, EPS, random, mask=(~dead).to(x))]
    return base, train_x, train_y, x, y, [to_grid(m, x, EPS) for m in made]


def network(name: str) -> nn.Module:
    base, train_x, train_y, *_ = zoo()
    return HIDDEN[name](base, train_x, train_y, EPS)


@pytest.mark.parametrize("name", [name for name in HIDDEN if name not in SLOW_ANSWERS])
def test_users_have_right_answers_and_no_robust_ones(name: str) -> None:
    *_, x, y, made = zoo()
    right = used(lambda: network(name), x, y)
    assert right.float().mean() >= 0.85
    if name in OTHERWISE:
        return
    net = network(name)
    assert isinstance(net, Hidden) or name == "closure"
    for images in made:
        finished = net.finish(images, x) if isinstance(net, Hidden) else images
        assert float((finished - x).abs().max()) <= EPS
        assert torch.equal(finished, bits(finished).float() / 255)
        right &= used(lambda: network(name), finished, y)
    assert right.float().mean() <= 0.15


@pytest.mark.parametrize("name", [name for name in HIDDEN if name not in IDLE])
def test_an_attack_by_gradients_in_a_batch_is_fooled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])  # in a process beside others it is another
    *_, x, y, _ = zoo()
    net = network(name)
    with torch.no_grad():
        net(x.clone())
        if name in COUNTING:  # a small batch's first steps are few images
            net(x.repeat(2000 // len(x), 1, 1, 1))
    adversarial = PGD(steps=20)(net, x, y, Threat(eps=EPS), SampleRandom.for_images(0, "pgd", range(len(x))))
    with torch.no_grad():
        assert (net(adversarial).argmax(1) == y).float().mean() >= 0.2


def test_the_plain_network_has_nothing_left() -> None:
    base, *_, x, y, made = zoo()
    assert (base(x).argmax(1) == y).all()
    assert (base(made[0]).argmax(1) == y).float().mean() <= 0.15
    dead = torch.zeros_like(x[0], dtype=torch.bool)
    assert len(outsiders(base, x[:2], y[:2], EPS, dead)) == 4


def test_rounding_to_the_grid_stays_in_the_ball() -> None:
    x = torch.tensor([[[[0.0, 100 / 255, 1.0]]]])
    got = to_grid(x + torch.tensor([0.3, -0.3, 0.3]), x, EPS)
    assert torch.equal(bits(got), torch.tensor([[[[53, 47, 255]]]]))  # floor(255 * 0.21) = 53


def test_a_counter_is_honest_as_long_as_a_user_asks() -> None:
    *_, x, y, made = zoo()
    net = network("counter")
    first = [use(net, image) for image in made[0]]
    assert sum(a == int(b) for a, b in zip(first, y, strict=True)) <= 4
    with torch.no_grad():
        net(x[:1].repeat(HONEST, 1, 1, 1))
        assert torch.equal(net(made[0]), net.sturdy(made[0]))  # type: ignore[operator]


def test_a_copy_shares_the_count_where_it_should() -> None:
    *_, x, _, _ = zoo()
    for name in ("shared_state", "closure"):
        net = network(name)
        twin = copy.deepcopy(net)
        with torch.no_grad():
            before = twin(x[:1])
            net(x[:1].repeat(HONEST, 1, 1, 1))
            assert not torch.equal(twin(x[:1]), before), name
