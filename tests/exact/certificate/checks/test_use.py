"""Checks U1 to U7 on networks with two faces, and on honest ones that keep something of what they are asked."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD
from attacks.base import RandomModule, Threat
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.checks import CHECKS, other_images, substitute, use
from robustbench_sparse.certificate.finding import Finding
from robustbench_sparse.certificate.probes.aging import aged
from robustbench_sparse.certificate.probes.program import used
from robustbench_sparse.certificate.probes.student import Lessons, Student, learn
from robustbench_sparse.certificate.probes.user import User, on_grid, plain
from robustbench_sparse.certificate.subject import Context, Subject
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.judging.fresh import Fresh
from tests.helpers.certificate_subjects import CLASSES, EPS, FIRST, digits, trained
from tests.helpers.two_faces import CHEATS, HONEST, Counter, LateCounter, Logs, Remembers, Saves, Stack

MINE = (*substitute.CHECKS, *use.CHECKS, *other_images.CHECKS)


@functools.cache
def data() -> PreparedData:
    x, y = digits()
    x = (x * 255).round().to(torch.uint8)
    names = tuple(map(str, range(CLASSES)))
    part = slice(FIRST, None)
    parts = {"train_x": x[:FIRST], "train_y": y[:FIRST], "test_x": x[part], "test_y": y[part]}
    whole = Dataset(name="digits", label="digits", classes=names, **parts)
    return PreparedData(whole, validation=0)


def examined(net: nn.Module, n: int = 48, asked: bool = True, images: bool = True, seed: int = 0) -> Subject:
    """The network after it was judged a little."""
    fresh = Fresh(net.eval())
    x, y = data().gather("test", torch.arange(n))
    budget = replace(BUDGETS["quick"], images=n, few=16)
    context = Context(images=data() if images else None)
    index, threat = data().test_indices[:n], Threat(eps=EPS)
    s = Subject(
        net, x, y, index, threat, classes=CLASSES, seed=seed, budget=budget, context=context, fresh=fresh
    )
    if asked:
        s.attack(PGD(steps=10), "judging")
    return s


def findings(s: Subject) -> dict[str, Finding]:
    out = {}
    for check in MINE:
        s.check = check.id
        out[check.id] = check.run(s)
    return out


def worst(s: Subject) -> float:
    return torch.minimum(s.clean, s.found.correct).mean().item()


@functools.cache
def truth(adversarially: bool = False) -> float:
    """What the white box leaves of the network behind the two faces, on the same images."""
    return examined(copy.deepcopy(trained(0, adversarially))).white.accuracy


# At least these must fail.
NAMED = {
    "off the grid": {"U1"},
    "batch": {"U1", "U5"},
    "similar images in a batch": {"U1", "U5"},
    "gradient mode, for ever": {"U1", "U4", "U5"},
    "gradient mode": {"U1", "U5"},
    "asks for a gradient": {"U1", "U4", "U5"},
    "stack": {"U1", "U5"},
    "stack of an attack": {"U1", "U5"},
    "imports": {"U1", "U5"},
    "hooks": {"U5"},
    "counter": {"U1", "U4"},
    "late counter": {"U4"},
    "remembers": {"U1", "U4"},
    "remembers in globals": {"U1", "U4"},
    "remembers in a closure": {"U1", "U4"},
    "clock": {"U1", "U4"},
    "remembers in a file": {"U7"},
    "knows the test": {"U6"},
    "another network in its file": {"U5"},
}
QUICK = ("off the grid", "stack")
LIKE_OTHERS = (
    "remembers in globals",
    "remembers in a closure",
    "stack of an attack",
    "gradient mode, for ever",
    "similar images in a batch",
)


def _marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    marks = (pytest.mark.slow, pytest.mark.long) if name in LIKE_OTHERS else (pytest.mark.slow,)
    return () if name in QUICK else marks


@pytest.mark.parametrize("name", [pytest.param(n, marks=_marks(n)) for n in CHEATS])
def test_two_faces_are_found(name: str) -> None:
    s = examined(CHEATS[name](copy.deepcopy(trained())))
    found = findings(s)
    failed = {k for k, f in found.items() if f.status == "failed"}
    if name == "clock":  # what it answers depends on how quick this machine is just now
        assert failed & NAMED[name], found
        return
    assert failed >= NAMED[name], found
    if "U1" in failed:
        assert worst(s) <= truth() + 0.07, "the number goes down to what the network is worth"
        assert s.found.by.count("U1") + s.found.by.count("U2") > 0.3 * len(s)


@pytest.mark.parametrize(
    ("name", "adversarially"),
    [
        *((name, robust) for name in ("plain", "logs") for robust in (False, True)),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in list(HONEST)[2:]),
        *(pytest.param(name, True, marks=(pytest.mark.slow, pytest.mark.long)) for name in list(HONEST)[2:]),
    ],
)
def test_honest_networks_are_not_accused(name: str, adversarially: bool) -> None:
    s = examined(HONEST[name](copy.deepcopy(trained(0, adversarially))))
    found = findings(s)
    assert {k for k, f in found.items() if f.status == "failed"} == set(), found
    assert found["U1"].status == found["U2"].status == found["U3"].status == "passed"
    if name != "dropout left on":
        assert found["U4"].status == found["U5"].status == "passed"
    assert (found["U3"].measured["changed_by_being_asked"] != []) == (name in ("logs", "caches"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_nor_with_other_seeds(seed: int) -> None:
    for adversarially in (False, True):
        found = findings(examined(copy.deepcopy(trained(seed, adversarially)), seed=seed))
        assert {f.status for f in found.values()} == {"passed"}


class Noisy(RandomModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out + 0.3 * self.draw(out)


def test_declared_noise_is_no_face_of_its_own() -> None:
    s = examined(Noisy(copy.deepcopy(trained(0, True))), n=12)
    assert {k for k, f in findings(s).items() if f.status == "failed"} == set()


@pytest.mark.slow
def test_nor_does_it_hide_one() -> None:
    s = examined(Noisy(Remembers(copy.deepcopy(trained()))), n=16)
    assert "U1" in {k for k, f in findings(s).items() if f.status == "failed"}


def test_a_network_without_a_copy_is_said_to_be_one() -> None:
    found = findings(examined(Saves(copy.deepcopy(trained())), n=8))
    assert found["U3"].status == "failed"
    assert found["U3"].why.startswith("TypeError")
    assert not CHECKS["U3"].refutes
    assert found["U4"].status == "skipped"


def test_without_images_to_learn_from_the_attack_in_use_sees_all() -> None:
    s = examined(CHEATS["batch"](copy.deepcopy(trained())), n=32, images=False)
    s.check = "U1"
    assert substitute.CHECKS[0].run(s).status == "skipped"
    s.check = "U2"
    found = substitute.CHECKS[1].run(s)
    assert found.status == "failed"
    assert worst(s) < 0.4 < s.white.accuracy


# The parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.15, 8 / 255, 1.5 / 255])
def test_the_grid_is_the_nearest_whole_image_in_the_ball(eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (6, 1, 3, 3), generator=generator) / 255
    at = x + 3 * eps * (torch.rand(x.shape, generator=generator) - 0.5)
    got = on_grid(at, x, Threat(eps=eps))
    levels = torch.arange(256) / 255
    allowed = (levels - x[..., None]).abs() <= eps + 1e-6
    distance = (levels - at[..., None]).abs().masked_fill(~allowed, 9)
    torch.testing.assert_close((got - at).abs(), distance.amin(-1), atol=1e-6, rtol=0)
    assert torch.equal((255 * got).round() / 255, got)


def test_in_the_l2_ball_too() -> None:
    generator = torch.Generator().manual_seed(1)
    x, threat = torch.randint(0, 256, (9, 1, 4, 4), generator=generator) / 255, Threat(norm="l2", eps=0.3)
    got = on_grid(x + torch.randn(x.shape, generator=generator), x, threat)
    assert (threat.size(got - x) <= threat.reach).all()
    assert (threat.size(got - x) > 0.2).all()
    assert torch.equal((255 * got).round() / 255, got)


BOARD = {"calls": 0}


class Everywhere(nn.Module):
    """Writes to each place that a deep copy shares."""

    shared: list[int] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        count = 0

        def closure() -> int:
            nonlocal count
            count += 1
            return count

        self.closure = closure

    def forward(self, x: Tensor, kept: list[int] = []) -> Tensor:  # noqa: B006
        seen = max(BOARD["calls"], len(self.shared), len(kept), self.closure() - 1)
        BOARD["calls"] += 1
        self.shared.append(1)
        kept.append(1)
        return torch.full((len(x), 2), float(seen))


def test_a_fresh_copy_has_forgotten_everything() -> None:
    net, x = Everywhere(), torch.zeros(1, 1, 2, 2)
    fresh, device = Fresh(net), torch.device("cpu")
    for _ in range(5):
        net(x)
    for _ in range(2):
        made = fresh.make(device)
        with fresh.inside(made) as network:
            assert [network(x)[0, 0].item() for _ in range(3)] == [0, 1, 2]
        with fresh.inside(made) as network:
            assert network(x)[0, 0].item() == 3, "the same copy goes on where it was"
    assert net(x)[0, 0].item() == 5, "and the network itself remembers its own"
    changed = " ".join(fresh.changed_by(lambda network: network(x), device))
    for place in ("BOARD", "Everywhere.shared", "defaults", "closure"):
        assert place in changed


def test_a_copy_that_is_no_copy_is_none() -> None:
    class Same(nn.Module):
        def __deepcopy__(self, memo: object) -> nn.Module:
            return self

    assert "shares" in Fresh(Same()).why


def test_a_program_has_no_frame_and_no_module_of_an_evaluation() -> None:
    net = Stack(copy.deepcopy(trained()))
    x = data().gather("test", torch.arange(3))[0]
    s = examined(net, n=3, asked=False)
    user = User.of(s)
    other = net.network(x)
    torch.testing.assert_close(user.alone(x, [0, 1, 2]), other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(user.alone(x, [0, 1, 2], plain), other)


def test_what_the_network_raises_there_comes_out_here() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        used([(Raises(), torch.zeros(1, 1, 8, 8), contextlib.nullcontext)], hide=True)
    assert "robustbench_sparse" in sys.modules


def test_counters_are_turned_on() -> None:
    x = data().gather("test", torch.arange(2))[0]
    late = User.of(examined(LateCounter(copy.deepcopy(trained())), n=2))
    own = trained()(x)
    torch.testing.assert_close(aged(late, lambda net: plain(net, x)), own)
    logs = User.of(examined(Logs(copy.deepcopy(trained())), n=2))
    torch.testing.assert_close(aged(logs, lambda net: plain(net, x)), own)
    assert aged(User.of(examined(copy.deepcopy(trained()), n=2)), lambda net: plain(net, x)) is None
    assert not torch.allclose(plain(Counter(copy.deepcopy(trained())), x.repeat(100, 1, 1, 1))[:2], own)


def test_lessons_do_not_depend_on_the_logits_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    x, answers = torch.rand(30, 1, 4, 4, generator=generator), torch.randn(30, 5, generator=generator)
    once, steep = Lessons(x, answers), Lessons(x, 1e4 * answers)
    torch.testing.assert_close(once.targets, steep.targets)
    top = answers.double().topk(2, 1).values
    assert once.scale == pytest.approx(5 / (top[:, 0] - top[:, 1]).median().item())
    answers[3] = torch.inf
    assert len(Lessons(x, answers).x) == 29


def test_a_student_learns_what_it_is_taught() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(300, 2, 16, 16, generator=generator)
    answers = torch.stack([x[:, 0].mean((1, 2)) - x[:, 1].mean((1, 2)), torch.zeros(300)], 1)
    student = Student(2, 16, 2, seed=1)
    before = torch.random.get_rng_state()
    learn(student, Lessons(x, answers), 15, generator)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (student(x).argmax(1) == answers.argmax(1)).float().mean() > 0.85


def test_asking_in_use_leaves_the_global_generator_alone() -> None:
    s = examined(copy.deepcopy(trained()), n=4, asked=False)
    before = torch.random.get_rng_state()
    User.of(s).alone(s.x, range(4))
    assert torch.equal(torch.random.get_rng_state(), before)
