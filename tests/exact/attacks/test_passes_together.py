"""Passes over a random network that go through it side by side are the passes that would go one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.base import RandomModule, SampleRandom, input_gradient, logits_of
from attacks.losses import margin
from defenses.robust.draws import BatchRandom
from tests.helpers.attack_models import linear_net, streams


class Jitter(RandomModule):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * self.draw(x)


def network() -> nn.Module:
    return nn.Sequential(Jitter(), linear_net(3, 12), Jitter()).eval()


X = torch.rand(5, 1, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("images", [1, 10, 12, 10_000])
def test_how_many_go_together_changes_no_number(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    one_by_one = []
    for cap in (1, images):
        monkeypatch.setattr("attacks.base._IMAGES", cap)
        grad, loss, logits = input_gradient(net, X, Y, margin, streams(5), eot=7)
        one_by_one.append((grad, loss, logits, logits_of(net, X, streams(5), draws=7)))
    for a, b in zip(*one_by_one, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_an_image_draws_the_same_whoever_is_beside_it() -> None:
    net = network()
    whole = logits_of(net, X, streams(5), draws=6)
    part = logits_of(net, X[2:4], SampleRandom.for_images(0, "image", range(2, 4)), draws=6)
    again = logits_of(net, X, SampleRandom.for_images(0, "image", range(5)), draws=6)
    assert torch.allclose(again[2:4], part, atol=1e-12)
    assert whole.shape == again.shape


def test_branches_differ_and_move_the_stream_on() -> None:
    random = SampleRandom.for_images(0, "a", range(3))
    first, second = random.branches(4), random.branches(4)
    assert first is not None
    assert second is not None
    drawn = torch.stack([b.normal(torch.zeros(3, 50)) for b in [*first, *second]])
    rows = drawn.flatten(0, 1)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    assert drawn.mean().abs() < 0.1
    assert (drawn.std() - 1).abs() < 0.1


def test_few_large_images_go_one_pass_at_a_time() -> None:
    seen: list[int] = []
    net = nn.Sequential(Jitter(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    logits_of(net, torch.zeros(2, 3, 300, 300), streams(2), draws=3)
    assert seen == [2, 2, 2]
    seen.clear()
    logits_of(net, torch.zeros(2, 3, 8, 8), streams(2), draws=3)
    assert seen == [6]


def test_training_draws_from_its_one_stream_as_ever() -> None:
    net, generator = network(), torch.Generator().manual_seed(3)
    out = logits_of(net, X, BatchRandom(generator, 5), draws=3)
    generator.manual_seed(3)
    alone = BatchRandom(generator, 5)
    expected = sum(logits_of(net, X, alone, draws=1) for _ in range(3)) / 3
    assert torch.equal(out, torch.as_tensor(expected))
