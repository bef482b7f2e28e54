"""The certificate on networks that write where they should not, cannot be attacked, or end the program."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor, nn

from attacks.losses import margin
from robustbench_sparse.certificate import certify
from robustbench_sparse.certificate.checks import CHECKS
from robustbench_sparse.certificate.checks.indicators import Recorder
from robustbench_sparse.certificate.checks.noise import _pass
from robustbench_sparse.certificate.finding import Finding
from robustbench_sparse.certificate.probes.backward import agreement, bpda, killers, liars
from robustbench_sparse.certificate.probes.rewiring import copied
from robustbench_sparse.certificate.probes.surrogates import in_float64
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.engine.fast import FastNetwork
from tests.helpers.accidents import (
    EPS,
    THREAT,
    Linear,
    NaNGradient,
    Noisy,
    OffTheGrid,
    Writes,
    WritesIntoAnswers,
    subject,
    tensors,
    truth,
)


@functools.cache
def findings(model: nn.Module, behind: bool = False, kind: str = "") -> dict[str, Finding]:
    """Of all checks, or of one kind, with a stand-in or not; none may raise."""
    s = subject(model, FastNetwork(model.eval(), precision="fp32") if behind else None)
    return {k: certify._run(check, s) for k, check in CHECKS.items() if k.startswith(kind)}


PLAIN = Linear()


def assert_same(found: dict[str, Finding], known: dict[str, Finding]) -> None:
    # U3 lists what being asked changes in a network; only for some of these there is such a thing.
    assert {k: dataclasses.asdict(f) for k, f in found.items() if k != "U3"} == {
        k: dataclasses.asdict(f) for k, f in known.items() if k != "U3"
    }
    assert found["U3"].status == known["U3"].status if "U3" in known else "U3" not in found
    assert "passed" in {f.status for f in found.values()}


@pytest.mark.parametrize("network", [Writes("data"), Writes("in place"), WritesIntoAnswers()])
def test_what_a_network_writes_changes_no_finding(network: nn.Module) -> None:
    assert_same(findings(network), findings(PLAIN))


def test_nor_where_it_is_random() -> None:
    known = findings(Noisy(Linear()), kind="R")
    assert_same(findings(Noisy(Writes("data")), kind="R"), known)
    assert sum(f.status != "skipped" for f in known.values()) >= 5


def test_nor_do_single_looks_at_it_see_what_it_writes() -> None:
    x, y = tensors()
    s, network = subject(Linear()), Writes("nan").eval()
    along = s.random("along")
    cosine = agreement(network, x, y, lambda: along.normal(x), lambda: s.random("t"))
    assert cosine == pytest.approx(1), "the network is linear"
    before = x.clone()
    _pass(s.beside(network), x, None)
    assert torch.equal(x, before)


def test_nor_does_what_a_stand_in_writes() -> None:
    found, known = findings(Writes("data"), behind=True), findings(PLAIN, behind=True)
    assert {k: f.measured for k, f in found.items()} == {k: f.measured for k, f in known.items()}
    assert found["I4"].status == "passed"


@pytest.mark.parametrize("how", ["data", "nan"])
def test_what_an_attack_sent_is_kept_as_it_was_sent(how: str) -> None:
    x, y = tensors()
    recorder = Recorder(Writes(how).eval(), x, y, THREAT, margin)
    sent = THREAT.project(
        x - EPS * torch.where(y == 1, 1, -1).view(-1, 1, 1, 1) * Linear().w.sign().view(4, 4), x
    )
    recorder(sent.clone())
    assert torch.equal(recorder.point, sent)


@pytest.mark.parametrize("how", ["data", "in place", "nan"])
@pytest.mark.parametrize("noisy", [False, True])
def test_nor_what_a_subject_says(how: str, noisy: bool) -> None:
    x, _ = tensors()
    found = []
    for network in (Linear(), Writes(how)):
        before = x.clone()
        s = subject(Noisy(network) if noisy else network)
        attacked = s.strongest("t")
        grad = s.gradient(s.x, "g", nn.functional.cross_entropy)[0]
        found.append((s.clean, attacked.candidate, attacked.correct, grad))
        assert torch.equal(s.x, before)
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)
    if not noisy:
        assert found[0][2].tolist() == truth()


class Leaves(Linear):
    """Ends the program as soon as it is asked for a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise SystemExit(0)
        return super().forward(x)


class LeavesTracked(Linear):
    """Ends the program where the image asks for a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise SystemExit(0)
        return super().forward(x)


class Detached(Linear):
    """A detour on which gradients are lost, as one over NumPy."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(x.numpy()))


WHITE_BOX = ("M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M12", "G1", "T1", "I2", "I3", "B4")


def test_checks_that_break_off_are_no_evidence_and_the_others_are_made() -> None:
    found, plain = findings(OffTheGrid()), findings(PLAIN)
    assert found.keys() == plain.keys()
    broken_off = [k for k in WHITE_BOX if k != "G1"]
    assert {k: found[k].status for k in broken_off} == dict.fromkeys(broken_off, "error")
    assert found["G1"].status == "failed"
    assert all(plain[k].status == "passed" for k in WHITE_BOX)
    assert (
        found["M4"].done == "the check broke off: UserError: M4: an attack gave an image that is not finite"
    )
    assert found["M4"].traceback.splitlines()[0].startswith("robustbench_sparse/certificate/certify.py:")
    assert "/work" not in found["M4"].traceback
    assert "site-packages" not in found["M4"].traceback


@pytest.mark.parametrize("network", [NaNGradient(), Leaves()])
def test_a_network_without_gradients_is_judged_by_a_black_box_and_says_so(network: nn.Module) -> None:
    found = findings(network)
    assert found["G2"].status == "failed"
    for name in ("M1", "M3", "M4", "M5", "M6", "M12", "T1", "I2", "I3", "Z1", "B4"):
        assert (found[name].status, found[name].done) == ("skipped", ""), name
        assert found[name].why.startswith("the network gives no gradient ("), name
        assert found[name].why.endswith(": see G2"), name
    broken_off = {k for k, f in found.items() if f.status == "error" and not k.startswith("U")}
    assert broken_off <= {"D1", "T2"}, "some end as the network does"
    s = subject(network)
    assert s.white.correct.tolist() == truth(), "Square finds them all"


def test_a_network_that_ends_the_program_says_so() -> None:
    found = findings(Leaves())
    assert "SystemExit" in found["M4"].why
    assert "SystemExit" in str(found["G2"].measured)


class Picky(Linear):
    """Ends the program for images out of the box and for those that are not float32, or has a part that does."""

    def __init__(self) -> None:
        super().__init__()
        self.part = PickyPart()

    def forward(self, x: Tensor) -> Tensor:
        if x.min() < 0:
            raise SystemExit(0)
        return super().forward(self.part(x))


class PickyPart(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise SystemExit(0)
        return x * 1


def test_what_a_network_refuses_by_ending_the_program_is_done_without() -> None:
    x, _ = tensors()
    assert findings(Picky(), kind="V")["V1"].status == "passed"
    assert in_float64(Picky().eval(), x) is None
    assert liars(Picky().eval(), x) == []
    assert killers(Leaves().eval(), x) == killers(Detached().eval(), x) == ["before layer"]
    surrogate = bpda(LeavesTracked().eval(), x)
    assert surrogate is not None, "it goes around what ends the program"


def test_a_copy_that_ends_the_program_is_none() -> None:
    class NoCopy(Linear):
        def __deepcopy__(self, memo: object) -> NoCopy:
            raise SystemExit(0)

    assert copied(NoCopy()) is None


def test_an_interrupt_ends_the_certificate() -> None:
    def interrupted(s: Subject) -> Finding:
        raise KeyboardInterrupt

    check = dataclasses.replace(CHECKS["M1"], run=interrupted)
    with pytest.raises(KeyboardInterrupt):
        certify._run(check, subject(Linear()))
