"""The growing radius, and what a second pass leaves of itself."""

from __future__ import annotations

import pytest
import torch

from attacks.base import Threat
from defenses import FGSMRS, MART, NFGSM, PGDAT, TRADES
from defenses.robust.attacking import Attacking, record, scaled, second_pass
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
