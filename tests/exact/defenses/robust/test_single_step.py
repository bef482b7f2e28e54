"""N-FGSM and FGSM-RS: the step in closed form, where it may lead, and the alarm for catastrophic overfitting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.base import Threat
from defenses import FGSMRS, NFGSM
from defenses.robust.draws import BatchRandom
from defenses.robust.overfitting import Alarm
from tests.helpers.robust_steps import linear, step, with_norm

A = torch.randn(12, generator=torch.Generator().manual_seed(2))


def sloped() -> nn.Module:
    """Outputs (0, a.x): of class 0, every image's loss grows along a."""
    return linear(torch.stack((torch.zeros(12), A)))


@pytest.mark.parametrize(("noise", "alpha"), [(2.0, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_n_fgsm_is_noise_and_a_step_and_nothing_is_clipped(noise: float, alpha: float) -> None:
    s = step(sloped(), size=2)
    s.x, s.y = torch.full((16, 3, 2, 2), 0.5), torch.zeros(16, dtype=torch.long)
    x = NFGSM(eps=0.03, noise=noise, step_size=alpha).perturb(s)
    drawn = BatchRandom(torch.Generator().manual_seed(0)).uniform(s.x)
    eta = noise * 0.03 * (2 * drawn - 1)
    torch.testing.assert_close(x, s.x + eta + alpha * 0.03 * A.sign().view(3, 2, 2))
    if noise == 2:
        assert (x - s.x).abs().max() > 2 * 0.03  # far outside the ball


def test_fgsm_rs_is_a_uniform_start_and_a_step_clipped_to_the_ball() -> None:
    s = step(sloped(), size=2)
    s.x, s.y = torch.full((16, 3, 2, 2), 0.5), torch.zeros(16, dtype=torch.long)
    x = FGSMRS(eps=0.03).perturb(s)
    drawn = BatchRandom(torch.Generator().manual_seed(0)).uniform(s.x)
    moved = 0.03 * (2 * drawn - 1) + 1.25 * 0.03 * A.sign().view(3, 2, 2)
    torch.testing.assert_close(x, s.x + moved.clamp(-0.03, 0.03))
    assert ((x - s.x).abs() < 0.0299).any()  # it does not end in the corners alone


@pytest.mark.parametrize("defense", [NFGSM(eps=0.2), FGSMRS(eps=0.2)])
def test_pixels_stay_in_their_range_where_the_gradient_is_taken_too(defense: NFGSM | FGSMRS) -> None:
    s, seen = step(with_norm().eval()), list[Tensor]()
    s.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for x in (defense.perturb(s), *seen):
        assert x.min() >= 0
        assert x.max() <= 1
    assert len(seen) == 1  # a single gradient pass, and none besides


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_the_network_stays_as_it_is(batch_statistics: bool) -> None:
    s = step(with_norm().train())
    before = {k: v.clone() for k, v in s.model.state_dict().items()}
    x = NFGSM(batch_statistics=batch_statistics).perturb(s)
    assert s.model.training
    assert not x.requires_grad
    assert all(torch.equal(before[k], v) for k, v in s.model.state_dict().items())


def test_only_finite_linf_balls() -> None:
    for threat, name in ((Threat(norm="l2", eps=0.5), "norm"), (Threat(eps=float("inf")), "eps")):
        s = step(with_norm())
        s.threat = threat
        with pytest.raises(ValueError, match=f"^{name}: expected "):
            NFGSM().check_stage(s)


@pytest.mark.parametrize(("gradient", "asked"), [("stage", None), ("bf16", "bf16")])
def test_the_gradient_is_taken_on_a_quick_copy_in_its_precision(gradient: str, asked: str | None) -> None:
    s, precisions = step(with_norm().train()), list[str | None]()

    def quick(precision: str | None) -> nn.Module:
        precisions.append(precision)
        return with_norm().eval()

    s.quick = quick
    defense = NFGSM(gradient=gradient)
    first = defense.perturb(s)
    assert precisions == [asked]
    s.quick = None
    s.generator.manual_seed(0)
    assert torch.equal(defense.perturb(s), first)


class OneStepOnly(nn.Module):
    """Class 0 unless the pixel has left 0.5 by a little, but not by much: robust to one full step, not to ten."""

    def forward(self, x: Tensor) -> Tensor:
        away = (x - 0.5).flatten(1).abs().amax(1)
        wrong = torch.minimum(away, 0.1 - away)  # > 0 strictly between 0 and 0.1
        return torch.stack((torch.full_like(wrong, 0.02), wrong), 1)


def test_alarm_rings_for_a_network_that_withstands_one_step_only() -> None:
    x, y = torch.full((40, 1, 3, 3), 0.5), torch.zeros(40, dtype=torch.long)
    log = Alarm().look(OneStepOnly(), x, y, Threat(eps=0.1), torch.Generator())
    assert log["fgsm_accuracy"] == 100
    assert log["pgd_accuracy"] < 80
    assert log["overfitting"] == 1


def test_alarm_is_silent_for_a_robust_network_and_for_a_weak_one() -> None:
    x, y = torch.full((40, 3, 2, 2), 0.5), torch.zeros(40, dtype=torch.long)
    y[20:] = 1
    # a.x - 0.5 sum(a) = 0 at all images: class 0 is right by the tie, and any step along a breaks it.
    weak, robust = sloped(), linear(torch.zeros(2, 12))
    for network, accuracy in ((weak, 0.0), (robust, 50.0)):
        log = Alarm().look(network, x, y, Threat(eps=0.1), torch.Generator())
        assert log == {"fgsm_accuracy": accuracy, "pgd_accuracy": accuracy, "overfitting": 0.0}


def test_alarm_rings_where_robustness_is_lost_from_one_epoch_to_a_later_one() -> None:
    x, y = torch.full((40, 3, 2, 2), 0.5), torch.zeros(40, dtype=torch.long)
    for best, rings in ((15.0, 0.0), (25.0, 1.0)):
        log = Alarm(gap=20).look(sloped(), x, y, Threat(eps=0.1), torch.Generator(), best)
        assert log["overfitting"] == rings


def test_alarm_moves_no_stream_on() -> None:
    stream = torch.Generator().manual_seed(4)
    before = stream.get_state()
    Alarm().look(with_norm().eval(), torch.rand(8, 3, 8, 8), torch.zeros(8).long(), Threat(), stream)
    assert torch.equal(stream.get_state(), before)


def test_history_and_a_line_for_the_user() -> None:
    s = step(with_norm().train(), eps=0.05)
    told: list[str] = []
    s.tell, s.threat = told.append, Threat(eps=0.05)
    defense = NFGSM(alarm_images=20, alarm_gap=10.0)
    for s.minibatch in range(3):
        defense.perturb(s)
    assert sum(len(y) for _, y in defense._looked_at["images"]) == 32  # two minibatches hold the 20
    log = defense.end_epoch(s)
    assert set(log) == {"fgsm_accuracy", "pgd_accuracy", "overfitting"}
    assert len(told) == log["overfitting"]
    assert defense.memory["best"] == log["pgd_accuracy"]
    defense.memory["best"] = 100.0
    for s.minibatch in range(2):
        defense.perturb(s)
    told.clear()
    assert defense.end_epoch(s)["overfitting"] == 1
    assert len(told) == 1
    assert told[0].startswith("epoch 1: catastrophic overfitting: ")
    assert NFGSM(alarm_images=0).end_epoch(s) == {}
