"""The growing radius, minibatches attacked part by part, and what a second pass leaves of itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.base import Threat
from defenses import FGSMRS, MART, NFGSM, PGDAT, TRADES
from defenses.robust import attacking
from defenses.robust.attacking import Attacking, record, scaled, second_pass
from defenses.robust.enresnet import Noise
from tests.helpers.robust_steps import step, with_norm


def test_radius_rises_in_a_straight_line_and_once() -> None:
    s = step(with_norm())
    s.steps_per_epoch = 4
    defense = PGDAT(eps_warm_up=2, steps=1)
    grown = [defense.grown(s) for _ in range(10)]
    assert grown == pytest.approx([k / 8 for k in range(1, 9)] + [1.0, 1.0])
    defense.begin(s)  # of the next stage
    assert defense.grown(s) == 1
    assert [PGDAT().grown(s) for _ in range(2)] == [1, 1]
    assert PGDAT().memory == {}


@pytest.mark.parametrize(
    ("still", "growing"),
    [
        (PGDAT(eps=0.08, steps=2, step_size=0.06), PGDAT(eps=0.16, steps=2, step_size=0.12, eps_warm_up=1)),
        (PGDAT(eps=0.08, steps=2), PGDAT(eps=0.16, steps=2, eps_warm_up=1)),
        (FGSMRS(eps=0.08), FGSMRS(eps=0.16, eps_warm_up=1)),
        (NFGSM(eps=0.08), NFGSM(eps=0.16, eps_warm_up=1)),
        (MART(eps=0.08, steps=2, step_size=0.06), MART(eps=0.16, steps=2, step_size=0.12, eps_warm_up=1)),
    ],
)
def test_half_way_all_is_as_with_half_the_radius_and_step(still: Attacking, growing: Attacking) -> None:
    s, t = step(with_norm().eval()), step(with_norm().eval())
    t.steps_per_epoch = 2
    torch.testing.assert_close(growing.perturb(t), still.perturb(s))
    whole = growing.perturb(t)
    assert Threat().size(whole - t.x).max() > 0.15


def test_trades_grows_as_well() -> None:
    s, t = step(with_norm().eval()), step(with_norm().eval())
    t.steps_per_epoch = 2
    still, growing = TRADES(eps=0.08, steps=2), TRADES(eps=0.16, steps=2, eps_warm_up=1)
    still.perturb(s)
    growing.perturb(t)
    torch.testing.assert_close(growing._now["x"], still._now["x"])


def test_scaled_keeps_the_norm() -> None:
    assert scaled(Threat(norm="l2", eps=2.0), 0.25) == Threat(norm="l2", eps=0.5)


def test_a_second_pass_changes_statistics_only_when_it_is_recorded() -> None:
    s, twin = step(with_norm().train()), with_norm().train()
    before = {k: v.clone() for k, v in s.model.state_dict().items()}
    first = s.model(s.x)
    after_first = {k: v.clone() for k, v in s.model.named_buffers()}
    second, statistics = second_pass(s, s.x / 2)
    assert all(torch.equal(after_first[k], b) for k, b in s.model.named_buffers())
    (first.sum() + second.square().sum()).backward()
    record(statistics)
    twin(s.x), twin(s.x / 2)
    for k, b in s.model.named_buffers():
        assert torch.equal(b, twin.get_buffer(k))
        assert not torch.equal(b, before[k])


@pytest.mark.parametrize("defense", [NFGSM(), FGSMRS(), PGDAT(steps=3), PGDAT(steps=3, random_start=False)])
def test_part_by_part_the_examples_are_the_same(
    defense: NFGSM | FGSMRS | PGDAT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacking, "_TOGETHER", 1000)
    whole = step(with_norm().eval())
    expected = defense.perturb(whole)
    monkeypatch.setattr(attacking, "_TOGETHER", 1)
    apart, seen = step(with_norm().eval()), list[int]()
    apart.model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    # Each image's gradient is its own; sums within a layer may be rounded in another order.
    torch.testing.assert_close(defense.perturb(apart), expected, atol=1e-6, rtol=0)
    assert max(seen) <= torch.get_num_threads()
    assert sum(seen) == len(apart.x) * defense.passes
    assert torch.equal(apart.generator.get_state(), whole.generator.get_state())


def test_parts_are_for_images_that_are_apart_and_for_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacking, "_TOGETHER", 1)
    x = torch.zeros(4 * torch.get_num_threads() + 1, 3, 8, 8)
    network, whole = with_norm().eval(), [slice(len(x))]
    several = attacking.parts(network, x)
    assert len(several) == 5
    assert torch.equal(torch.cat([torch.arange(len(x))[part] for part in several]), torch.arange(len(x)))
    with attacking.batch_norm_of_the_batch(network):
        assert attacking.parts(network, x) == whole
    with torch.autocast("cpu", torch.bfloat16):
        assert attacking.parts(network, x) == whole
    assert attacking.parts(nn.Sequential(network, Noise(0.1, "sample")), x) == whole
    network.precision = "bf16"  # type: ignore[assignment]
    assert attacking.parts(network, x) == whole
