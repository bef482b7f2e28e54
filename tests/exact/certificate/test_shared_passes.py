"""What checks share is made once, means the same whoever comes first, and no image that is lost costs a pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, SampleRandom, Square, Threat
from robustbench_sparse.certificate.checks import controls, indicators, masking
from robustbench_sparse.certificate.finding import Finding
from robustbench_sparse.certificate.subject import Attacked, Subject
from robustbench_sparse.engine import autotune
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.judging.fresh import Fresh
from tests.helpers.certificate_subjects import After, subject, trained


class Counting(nn.Module):
    """A network that counts the images it is asked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.asked = network, [0]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.asked[0] += len(x)
        out: Tensor = self.network(x)
        return out


class Noisy(nn.Module):
    """Logits with noise of torch's own generator; says that it is random."""

    stochastic = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out + 0.1 * torch.randn_like(out)


def test_a_misclassified_image_is_its_own_adversarial_and_costs_nothing() -> None:
    net = Counting(trained())
    s = subject(net)
    wrong = (s.clean == 0).nonzero().flatten()
    assert 0 < len(wrong) < len(s)
    before = net.asked[0]
    out = s.attack(PGD(steps=3), "here", rows=wrong)
    assert net.asked[0] == before
    assert torch.equal(out.candidate, s.x[wrong])
    assert not out.correct.any()
    # Among others: in their places, and the others as if they were alone.
    whole, alone = s.attack(PGD(steps=3), "here"), s.attack(PGD(steps=3), "here", rows=s.correct_rows)
    assert torch.equal(whole.correct[s.correct_rows], alone.correct)
    assert torch.equal(whole.candidate[wrong], s.x[wrong])


def test_what_is_made_once_is_not_made_again() -> None:
    s, made = subject(trained()), []
    for _ in range(3):
        assert s.once("name", lambda: made.append(1) or len(made)) == 1  # type: ignore[func-returns-value]
    assert s.once("other", lambda: 7) == 7


def _alone_and_after(first: Any, second: Any, net: nn.Module) -> tuple[Finding, Finding]:
    shared = subject(net)
    first(shared)
    return second(subject(net)), second(shared)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (masking.iterated_beats_one_step, masking.accuracy_falls_with_eps),
        (masking.accuracy_falls_with_eps, masking.iterated_beats_one_step),
        (masking.chance_finds_nothing, controls.certificate_is_not_blind),
        (controls.certificate_is_not_blind, masking.black_box_finds_no_more),
        (indicators.adversarials_met_are_returned, indicators.attacks_have_stopped_climbing),
        (indicators.attacks_have_stopped_climbing, indicators.adversarials_met_are_returned),
    ],
)
def test_a_check_finds_the_same_whoever_made_what_it_needs(first: Any, second: Any) -> None:
    alone, after = _alone_and_after(first, second, trained(adversarially=True))
    assert alone == after
    assert alone.status in ("passed", "failed")


def test_the_second_of_two_checks_takes_fewer_passes() -> None:
    def passes(*checks: Any) -> int:
        net = Counting(trained(adversarially=True))
        s = subject(net)
        start = net.asked[0]
        for check in checks:
            check(s)
        return net.asked[0] - start

    m1, m2 = masking.iterated_beats_one_step, masking.accuracy_falls_with_eps
    assert passes(m1, m2) < passes(m1) + passes(m2)
    m7, m12 = masking.black_box_finds_no_more, controls.certificate_is_not_blind
    assert passes(m7, m12) < passes(m7) + passes(m12)


def test_restarts_go_on_from_the_paths_that_are_there() -> None:
    s = subject(trained(adversarially=True))
    found = masking.more_effort_changes_nothing(s).measured
    pairs: Any = found["acc_steps"], found["acc_restarts"]
    (once, longer), (many, more) = pairs
    assert 0 < more <= many <= once <= 1
    assert 0 < longer <= 1


def test_a_random_networks_restarts_are_judged_anew() -> None:
    """The smaller of two noisy shares would lie below the truth, and every comparison with it would fail."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        s = subject(Noisy(trained(adversarially=True)), n=16)
        before = Attacked(s.x.clone(), torch.full((len(s),), 0.9))
        after = masking._further(s, before, 1, "paths")
        again = s.judged(after.candidate, "fresh")
    assert (after.correct - again).abs().mean() < 0.15
    assert torch.equal(masking._further(s, before, 0, "none").correct, before.correct)


def test_a_random_network_that_is_broken_early_is_walked_no_further() -> None:
    box = Threat(norm="linf", eps=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Counting(Noisy(trained()))
        net.stochastic = True  # type: ignore[assignment]
        s = subject(net, n=12)
        rows = s.correct_rows
        start = net.asked[0]
        found = s.in_two(PGD(steps=40, step_size=0.05, eot=1), "all", rows, box)
        short = net.asked[0] - start
        start = net.asked[0]
        s.attack(PGD(steps=40, step_size=0.05, eot=1), "all", rows=rows, threat=box)
        whole = net.asked[0] - start
    assert (found.correct < 0.5).all()
    assert short < whole


def test_a_black_box_asks_the_stand_in_and_the_network_has_the_last_word() -> None:
    plain = Counting(trained(adversarially=True))
    s = subject(plain)
    fast = FastNetwork(plain, precision="fp32")
    # A stand-in that says the opposite: everything is fooled at once, and nothing of that holds.
    fast.twin = After(fast.twin, lambda z: -z)
    other = Subject(
        plain,
        s.x,
        s.y,
        s.index,
        s.threat,
        classes=s.classes,
        seed=s.seed,
        budget=s.budget,
        context=s.context,
        stand_in=fast,
    )
    square = Square(queries=60)
    via, direct = other.attack(square, "square"), s.attack(square, "square")
    # All of them were attacked again on the network itself, from other draws.
    assert via.accuracy == pytest.approx(direct.accuracy, abs=0.1)
    assert via.accuracy < s.clean.mean()
    assert torch.equal(via.correct, (plain(via.candidate).argmax(1) == s.y).float())


def test_square_is_sent_to_what_the_white_box_left() -> None:
    s = subject(trained(adversarially=True))
    asked: list[int] = []
    attack = s.attack

    def look(a: Any, name: str, **more: Any) -> Any:
        if name == "m7/square":
            asked.extend(more["rows"].tolist())
        return attack(a, name, **more)

    s.attack = look  # type: ignore[method-assign,assignment]
    found = masking.black_box_finds_no_more(s)
    left = (s.white.correct > 0.5).nonzero().flatten().tolist()
    assert asked == left
    assert 0 < len(left) < len(s)
    assert found.measured["black_acc"] <= found.measured["white_acc"]  # type: ignore[operator]


def test_no_copy_is_kept_where_no_check_asks() -> None:
    none = Fresh(None)
    assert none.why
    assert none.spaces == []
    with pytest.raises(RuntimeError, match="no copy"):
        none.make(torch.device("cpu"))


def test_a_pass_has_its_price_and_keeps_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "cache_folder", lambda _: tmp_path)
    net, x = trained(), torch.rand(8, 1, 8, 8)
    first = autotune.prices(net, net, x)
    assert sorted(first) == ["alone", "answers", "gradients"]
    assert all(0 < price < 1 for price in first.values())
    assert autotune.prices(net, net, x) == first
    held = autotune.prices(After(net, lambda z: z.detach()), After(net, lambda z: z.detach()), x)
    assert held["gradients"] == pytest.approx(3 * held["answers"])


def test_streams_of_equal_names_are_equal() -> None:
    s = subject(trained())
    drawn = [s.random("m1/pgd").uniform(s.x) for _ in range(2)]
    assert isinstance(s.random("m1/pgd"), SampleRandom)
    assert torch.equal(*drawn)
