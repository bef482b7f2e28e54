"""Honest networks that checks once accused, or broke off on; and what a check that breaks off comes to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks import APGD, NAttack, SampleRandom, Threat
from robustbench_sparse.certificate import certify as runner
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.certify import _run, certify, limit_of
from robustbench_sparse.certificate.checks import binarization, controls, indicators, masking, objective
from robustbench_sparse.certificate.finding import Check, Finding, ruled, skipped
from robustbench_sparse.certificate.subject import Attacked, Subject
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.reporting.explain import explain
from robustbench_sparse.sparsity.shrink.surgery import shrink_network
from tests.exact.certificate.test_certify import KEY, MANIFEST, check, folder
from tests.helpers.accidents import Noisy
from tests.helpers.certificate_subjects import CLASSES, EPS, After, Before, outcome, run, subject, trained
from tests.helpers.honest_idioms import Halves

# A check that breaks off -----------------------------------------------------------------------------------


def crashing(error: BaseException, refutes: bool = True) -> Check:
    def crash(s: Subject) -> Finding:
        raise error

    return replace(check("A", skipped(""), refutes), run=crash)


@pytest.mark.parametrize("error", [RuntimeError("no such\nthing"), SystemExit(3), AssertionError()])
def test_it_is_no_evidence_and_at_most_a_doubt(error: BaseException, tmp_path: Path) -> None:
    home = folder(tmp_path, {"a": ([1.0] * 96, {"A": crashing(error)})}) / "runs" / "a"
    made = json.loads((home / "certificate" / "certificate.json").read_text())
    (record,) = made["checks"]
    assert (made["verdict"], made["flags"]) == ("doubtful", ["A"])
    assert record["status"] == "error"
    assert record["done"].startswith(f"the check broke off: {type(error).__name__}")
    assert record["traceback"].splitlines()[-2].startswith("test_false_alarms.py:")
    assert "raise error" in record["traceback"]
    assert str(Path(__file__).parent) not in json.dumps(made), "a machine's folders are no one's business"
    text = explain(home, MANIFEST)
    assert "0 checks passed, 0 failed, 0 reported, 0 did not apply, 1 broke off" in text
    assert "A   ERROR   title of A" in text
    assert "raise error" in text
    assert "meaning of A" not in text, "it found nothing that could mean anything"
    assert text == explain(home, MANIFEST, failed_only=True)


class Looping(nn.Module):
    """Does not come to an end when ``on``."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.on = trained(), False

    def forward(self, x: Tensor) -> Tensor:
        while self.on:
            pass
        out: Tensor = self.network(x)
        return out


def test_a_check_that_does_not_end_is_ended_and_its_finds_do_not_count() -> None:
    network = Looping()
    s = subject(network, n=8)

    def find(s: Subject) -> Finding:
        s.note(torch.arange(2), s.x[:2], torch.zeros(2))
        handle = network.network.register_forward_hook(lambda *a: None)
        network.on = True
        s.logits(s.x, s.random("t"))
        handle.remove()
        return ruled(True, "", {})

    found = _run(replace(check("A", skipped("")), run=find), s, 0.2)
    network.on = False
    assert (found.status, found.done) == ("error", "the check ran out of its time limit of 0 s")
    assert s.found.rows.tolist() == [], "no timing decides a number"
    assert not network.network._forward_hooks, "what it hung into the network is gone"
    assert (
        _run(replace(check("B", skipped("")), run=lambda s: ruled(True, "", {})), s, 0.2).status == "passed"
    )


def test_a_slow_network_gets_longer() -> None:
    s = subject(trained(), n=8)
    quick = limit_of(s)
    assert BUDGETS["quick"].limit_s == 300 < quick < 400
    s.budget = replace(s.budget, limit_s=3600)
    assert limit_of(s) >= 3600


def test_every_check_runs_under_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits: list[float] = []
    monkeypatch.setattr(runner, "CHECKS", {"A": check("A", ruled(True, "", {}))})
    monkeypatch.setattr(runner, "limited", lambda seconds, work: (limits.append(seconds), work())[1])
    certify(subject(trained(), n=8), tmp_path, KEY, "quick", Silent())
    assert len(limits) == 1
    assert limits[0] >= 300


# M6 --------------------------------------------------------------------------------------------------------


def test_a_longer_walk_that_finds_less_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    s = subject(trained(), n=8)

    def attack(given: APGD, name: str, rows: Tensor | None = None) -> Attacked:
        found = [1.0, 1, 1, 1, 0, 0, 0, 0], [0.0, 0, 0, 1, 1, 1, 1, 1]
        rows = torch.arange(8) if rows is None else rows
        return Attacked(s.x[rows], torch.tensor(found[given.steps > s.budget.steps])[rows])

    monkeypatch.setattr(s, "attack", attack)
    found = run(masking.CHECKS, "M6", s)
    assert (found.status, found.measured["acc_steps"]) == ("passed", [0.5, 0.625])


# M7 --------------------------------------------------------------------------------------------------------


def test_a_network_that_answers_in_half_precision_is_attacked_like_any_other() -> None:
    half = After(trained(), lambda z: z.half())
    s = subject(half, n=24)
    random = SampleRandom.for_images(0, "t", range(24))
    found = NAttack(samples=20, steps=5)(half, s.x, s.y, Threat(eps=EPS), random)
    assert found.dtype == torch.float32
    assert (s.judged(found, "t") < s.clean).any()
    assert [k for k in ("M1", "M6", "M7", "T1", "Z1", "I2") if _run(known(k), s).status == "error"] == []


def known(name: str) -> Check:
    found: Mapping[str, Check] = runner.CHECKS
    return found[name]


# M10 -------------------------------------------------------------------------------------------------------


class OwnNoise(nn.Module):
    """Says that it is random, and draws from torch's own generator, as third-party code does."""

    stochastic = True

    def __init__(self, jump: float = 0.0) -> None:
        super().__init__()
        self.network, self.jump, self.calls = trained(), jump, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.network(x + 0.3 * torch.randn(x.shape))
        return out if self.calls < 70 or not self.jump else out.flip(1)


def zero_eps(network: nn.Module) -> Finding:
    plans = [AttackPlan("apgd", "apgd", APGD(steps=2), Threat(eps=EPS))]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return run(controls.CHECKS, "M10", subject(network, n=48, plans=plans))


def test_noise_of_a_networks_own_is_no_other_network() -> None:
    assert zero_eps(OwnNoise()).status == "passed"


def test_but_other_verdicts_than_the_noise_explains_are_found() -> None:
    found = zero_eps(OwnNoise(jump=1.0))
    assert (found.status, found.measured["changed"]) == ("failed", ["apgd"])


# T1 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 30, 200])
def test_the_exact_cross_entropy_is_that_of_float64_and_ties_nowhere(scale: int) -> None:
    z = scale * torch.tensor([[1.0, 0.2, 0.1], [0.3, 1.0, 0.2], [1.0, 0.3, -2.0]])
    y = torch.tensor([0, 0, 0])
    plain = torch.nn.functional.cross_entropy(z.double(), y, reduction="none")
    exact = objective.exact_cross_entropy(z, y)
    assert torch.allclose(exact, plain, rtol=1e-9, atol=1e-15)
    assert exact[0] == pytest.approx(math.log1p(math.exp(-0.8 * scale) + math.exp(-0.9 * scale)), rel=1e-5)
    assert exact[2] > 0 or scale > 100


def test_a_confident_network_whose_float32_cross_entropy_ties_is_not_accused() -> None:
    """Margins of a hundred and more: in float32 the loss of nearly every point is 0 exactly."""
    confident = After(trained(0, True), lambda z: 12 * z)
    s = subject(confident)
    z = s.logits(s.x, s.random("t"))
    zero = torch.nn.functional.cross_entropy(z, s.y, reduction="none") == 0
    assert zero.float().mean() > 0.5
    assert run(objective.CHECKS, "T1", s).status == "passed"


def test_where_every_image_is_broken_no_loss_has_hidden_anything() -> None:
    s = subject(After(trained(), lambda z: 1000 * z), eps=0.6)
    assert (s.white.correct == 0).all()
    found = run(objective.CHECKS, "T1", s)
    assert (found.status, found.why) == (
        "skipped",
        "every image is broken already: no loss has kept an attack from that",
    )


# I3, Z1, S4 ------------------------------------------------------------------------------------------------


def test_no_image_left_is_no_empty_batch() -> None:
    plans = [AttackPlan("apgd", "apgd", APGD(steps=5), Threat(eps=EPS))]
    bare = subject(trained(), n=16)
    tutorial = Before(trained(), lambda x: x.view(x.size(0), -1))  # torch refuses to work out -1 of no images
    s = subject(tutorial, n=16, plans=plans, outcomes={"apgd": outcome(bare, [0.0] * 16, EPS)})
    assert s.attack(APGD(steps=2), "t", rows=torch.arange(0)).correct.shape == (0,)
    found = run(indicators.CHECKS, "I3", s)
    assert found.status == "skipped"
    assert "no image standing" in found.why


class SingleApart(nn.Module):
    """Sends a single image through its linear layer, and batches through the same weights without it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            out: Tensor = self.network(x)
            return out
        features = self.network[:-1](x)  # type: ignore[index]
        last = self.network[-1]  # type: ignore[index]
        return features @ last.weight.t() + last.bias


def test_a_last_layer_that_batches_go_around_is_no_crash() -> None:
    found = run(binarization.CHECKS, "Z1", subject(SingleApart(), n=16))
    assert found.status == "skipped"
    assert "not run once for every batch" in found.why


def test_heads_stay_with_their_images_where_passes_come_together() -> None:
    s = subject(trained(), n=3)
    weight, bias = (
        torch.randn(3, 48, generator=torch.Generator().manual_seed(0)).double(),
        torch.zeros(3).double(),
    )
    heads = binarization.Heads(s.model, ["3"], weight, bias)
    assert torch.allclose(heads(s.x.repeat(4, 1, 1, 1)), heads(s.x).repeat(4, 1), atol=1e-4)


def test_a_random_network_is_tested_with_gradients_averaged() -> None:
    noisy = Noisy(trained())
    plans = [AttackPlan("apgd", "apgd", APGD(steps=3, loss="margin", eot=6), Threat(eps=EPS))]
    s = subject(noisy, n=6, plans=plans)
    s.budget = replace(s.budget, inner_points=9, draws=4)
    found = _run(known("Z1"), s)
    assert found.status != "error", found.traceback


def test_channels_that_the_library_loses_count_of_stay() -> None:
    pytest.importorskip("torch_pruning")
    net = Halves().eval()
    with torch.no_grad():
        net.conv1.weight[::2], net.conv1.bias[::2] = 0, 0  # type: ignore[index]
    x = torch.rand(4, 1, 8, 8)
    small = shrink_network(net, x)
    assert torch.allclose(small.model(x), net(x), atol=1e-5)
    assert small.removed == {"conv1": (8, 4)}
    assert _run(known("S4"), subject(Halves(), n=8)).status in ("passed", "skipped")


def test_surgery_is_bounded_in_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, CLASSES)).eval()
    where = "robustbench_sparse.certificate.checks.sparsity_records.MOST_CHANNELS"
    monkeypatch.setattr(where, 100)
    built: list[object] = []
    monkeypatch.setattr("robustbench_sparse.sparsity.shrink.surgery._graph", lambda *a: built.append(a))
    assert "no channels were removed" in _run(known("S4"), subject(net, n=8)).why
    with torch.no_grad():
        net[1].weight[0], net[1].bias[0] = 0, 0  # type: ignore[index]
    found = _run(known("S4"), subject(net, n=8))
    assert (found.status, found.why) == (
        "skipped",
        "134 channels are read and made, more than the 100 that surgery is tried on",
    )
    assert not built, "the library is not asked where nothing is dead, nor where there is too much"
