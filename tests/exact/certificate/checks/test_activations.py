"""A1 breaks what sparse activations hide, passes where they hide nothing, and leaves all other networks alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.base import RandomModule
from defenses.robust.broken import KWinners
from robustbench_sparse.certificate.checks import activations
from robustbench_sparse.certificate.finding import Finding
from tests.exact.attacks.test_smoothed import mean_sparse
from tests.helpers.certificate_subjects import Before, run, subject, trained


class Hidden(KWinners):
    """Winners whose gradient is 0 wherever it is asked."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach() + 0 * x


class Own(nn.Module):
    """Another's code: a rectifier that is no nn.ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, torch.zeros_like(x))


def found(net: nn.Module, n: int = 64, eps: float = 0.15) -> Finding:
    return run(activations.CHECKS, "A1", subject(net.eval(), n, eps))


def instead(activation: nn.Module, adversarially: bool = True) -> nn.Module:
    net = list(trained(adversarially=adversarially).children())
    return nn.Sequential(*net[:2], activation, *net[3:])


def accuracy(finding: Finding, name: str) -> float:
    value = finding.measured[name]
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize("adversarially", [False, True])
def test_networks_of_relus_are_left_to_the_white_box(adversarially: bool) -> None:
    s = subject(trained(0, adversarially))
    finding = run(activations.CHECKS, "A1", s)
    assert finding.status == "skipped"
    assert "no module sparsifies" in finding.why
    assert not s.__dict__["_white"]  # nothing was attacked for it
    assert found(instead(Own())).status == "skipped"


def test_winners_whose_gradient_is_hidden_are_broken() -> None:
    finding = found(instead(Hidden(0.5), adversarially=False))
    assert finding.status == "failed"
    assert finding.measured["parts"] == ["2"]
    assert accuracy(finding, "white_acc") > 0.8
    assert accuracy(finding, "adaptive_acc") < 0.4


def test_mean_sparse_is_broken_by_points() -> None:
    finding = found(mean_sparse(0.5), n=300)
    assert finding.status == "failed"
    assert accuracy(finding, "adaptive_acc") <= accuracy(finding, "white_acc") - 0.02
    steps = [accuracy(finding, k) for k in finding.measured if k.startswith("after_")]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == accuracy(finding, "adaptive_acc")


def test_a_band_too_narrow_to_matter_passes() -> None:
    finding = found(mean_sparse(0.01))
    assert finding.status == "passed"
    assert finding.measured["parts"]


def test_what_it_finds_counts_as_found() -> None:
    s = subject(instead(Hidden(0.5), adversarially=False), 32)
    run(activations.CHECKS, "A1", s)
    assert s.found.by.count("A1") > 10
    broken = torch.tensor([by == "A1" for by in s.found.by])
    with torch.no_grad():
        assert (s.model(s.found.candidate).argmax(1) != s.y)[broken].all()
    assert s.threat.size(s.found.candidate - s.x).max() <= s.threat.reach


def test_random_networks_repeat_and_a_ball_without_radius_is_skipped() -> None:
    class Noisy(RandomModule):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.05 * self.draw(x)

    net = nn.Sequential(Noisy(), mean_sparse())
    first, second = (found(net, 10) for _ in range(2))
    assert first == second
    assert first.status in ("passed", "failed")
    assert found(mean_sparse(), 10, eps=0.0).status == "skipped"
    assert found(Before(mean_sparse(), lambda x: torch.zeros_like(x) * x), 10).status in ("skipped", "passed")
