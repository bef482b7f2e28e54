"""Networks and attacks that would look robust by accident, beside linear ones whose true numbers are known."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from attacks import ATTACKS, FGSM, PGD
from attacks.base import Attack, SampleRandom, Threat
from attacks.transfer import Transfer
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.errors import UserError
from robustbench_sparse.fast import logits_in_parts
from robustbench_sparse.judge import Judge, Protocol
from robustbench_sparse.plan import AttackPlan
from robustbench_sparse.plugins import build
from robustbench_sparse.progress import Silent

PIXELS, EPS = 16, 8.4 / 255  # whose steps leave the 8-bit grid
THREAT = Threat(eps=EPS)
LIBRARY = ("FGSM", "PGD", "APGD", "EOTPGD", "MIFGSM", "FAB")


def data(count: int = 12) -> PreparedData:
    """Grey images on the 8-bit grid, whose label is the side of a plane they lie on."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(60, 196, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    y = (Linear().score(x.float() / 255) > 0).long()
    assert 0 < int(y.sum()) < count
    return PreparedData(
        Dataset(name="t", label="t", train_x=x, train_y=y, test_x=x, test_y=y, classes=("0", "1")),
        validation=0,
    )


class Linear(nn.Module):
    """Logits (-s, s) with s = w (x - 1/2): an image withstands l_inf eps where |s| > eps sum |w|."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, PIXELS))

    def score(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.w

    def forward(self, x: Tensor) -> Tensor:
        s = self.score(x)
        return torch.stack([-s, s], 1)

    def withstands(self, x: Tensor) -> Tensor:
        return self.score(x).abs() > EPS * self.w.abs().sum()


class _NaNBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grads[0].masked_fill(rows.view(-1, 1, 1, 1), float("nan")), None


class NaNGradient(Linear):
    """Right on clean images, and its gradient is no number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_NaNBackward.apply(x, torch.ones(len(x), dtype=torch.bool)))


class OffTheGrid(Linear):
    """Numbers on the 8-bit grid, none anywhere else."""

    def forward(self, x: Tensor) -> Tensor:
        off = (255 * x - (255 * x).round()).abs().flatten(1).amax(1) > 1e-3
        return super().forward(x).masked_fill(off[:, None], float("nan"))


class Writes(Linear):
    """Writes into its input, behind autograd's back; ``how`` says into which part."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.clone())
        with torch.no_grad():
            if self.how == "data":
                x.data.fill_(0.5)
            elif self.how == "in place":
                x.detach().clamp_(0.4, 0.6)
            else:
                x.data.view(-1)[0] = float("nan")
        return out


def judged(
    folder: Path,
    model: nn.Module,
    attack: Attack,
    images: PreparedData | None = None,
    threat: Threat = THREAT,
) -> pd.DataFrame:
    judge = Judge(model.eval(), images or data(), folder / "outcomes", Protocol(seed=1), "w", Silent())
    return judge.attack(AttackPlan("a", "a", attack, threat))


def truth() -> list[float]:
    images = data()
    x, y = images.gather("test", torch.arange(images.count("test")))
    net = Linear()
    stands = net.withstands(x)
    assert stands.any(), "or the test shows nothing"
    assert not stands.all(), "or the test shows nothing"
    assert (net(x).argmax(1) == y).all()
    return stands.float().tolist()


def test_the_attack_finds_the_truth_on_the_plain_network(tmp_path: Path) -> None:
    assert judged(tmp_path, Linear(), PGD(steps=20))["adv_correct"].tolist() == truth()


# Gradients and logits that are no numbers -----------------------------------------------------------------


def library_attack(name: str) -> Attack:
    attack: Attack = build(ATTACKS, {"name": f"torchattacks:{name}"}, "attack", Attack)
    return attack


def own_attacks() -> list[str]:
    """Of the table of contents: those that need no other network and no set of their own."""
    names = [n for n, cls in ATTACKS.items() if not cls.own_set and not cls.weak and cls is not Transfer]
    return [n for n in names if not inspect.isabstract(ATTACKS[n])]


def small(name: str) -> Attack:
    """An attack of few steps."""
    known = {"steps": 5, "queries": 50, "iterations": 3, "population": 20, "search_steps": 2}
    fields = ATTACKS[name].__dataclass_fields__
    attack: Attack = ATTACKS[name](**{k: v for k, v in known.items() if k in fields})
    return attack


def assert_none_withstood(table: pd.DataFrame) -> None:
    """No image has a verdict "right" that could not be attacked."""
    assert not (table["adv_correct"] > 0.5).any(), table[["adv_correct", "status", "linf"]]
    assert set(table["status"]) <= {"nonfinite", "ok"}


@pytest.mark.parametrize("network", [NaNGradient, OffTheGrid])
@pytest.mark.parametrize("name", LIBRARY)
def test_the_librarys_attacks_on_what_cannot_be_attacked(
    tmp_path: Path, name: str, network: type[Linear]
) -> None:
    try:
        table = judged(tmp_path, network(), library_attack(name))
    except KeyError:
        pytest.fail("the outcome has no verdicts at all")
    if "adv_correct" in table:  # else the library's attack crashed: no verdict, either
        assert_none_withstood(table)


@pytest.mark.parametrize("name", own_attacks())
def test_own_attacks_on_a_network_without_gradients(tmp_path: Path, name: str) -> None:
    attack = small(name)
    table = judged(tmp_path, NaNGradient(), attack)
    if attack.black_box:
        pure = judged(tmp_path / "plain", Linear(), attack)
        assert table["adv_correct"].tolist() == pure["adv_correct"].tolist(), "it asks for no gradient"
    else:
        assert_none_withstood(table)


@pytest.mark.parametrize("name", own_attacks())
def test_own_attacks_on_a_network_without_numbers(tmp_path: Path, name: str) -> None:
    assert_none_withstood(judged(tmp_path, OffTheGrid(), small(name)))


@pytest.mark.parametrize("name", ["cw", "fab", "torchattacks:FAB"])
def test_nor_does_the_way_back_into_the_ball_make_one_withstand(tmp_path: Path, name: str) -> None:
    """Projected onto a ball of whole steps, a point off the grid lies on it again, and its logits are numbers."""
    attack = library_attack("FAB") if ":" in name else small(name)
    assert_none_withstood(judged(tmp_path, OffTheGrid(), attack, threat=Threat(eps=8 / 255)))


def test_one_image_that_cannot_be_attacked_costs_the_others_nothing(tmp_path: Path) -> None:
    class Half(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(_NaNBackward.apply(x, x.flatten(1)[:, 0] > 0.5))

    x, _ = data().gather("test", torch.arange(12))
    far = (x.flatten(1)[:, 0] - 0.5).abs() > 2 * EPS
    broken = (x.flatten(1)[:, 0] > 0.5).tolist()
    assert 0 < sum(broken) < 12
    table = judged(tmp_path, Half(), library_attack("PGD"))
    for i, known in enumerate(truth()):
        if not far[i]:
            continue  # it crosses over under attack
        if broken[i]:
            assert table["status"][i] == "nonfinite" or table["adv_correct"][i] == 0
        else:
            assert (table["adv_correct"][i], table["status"][i]) == (known, "ok")


# Networks that write into their input ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["data", "in place", "nan"])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "cw", "fab", "square", "torchattacks:PGD"])
def test_what_a_network_writes_changes_nothing(tmp_path: Path, name: str, how: str) -> None:
    attack = library_attack("PGD") if ":" in name else small(name)
    plain = judged(tmp_path / "plain", Linear(), attack)
    writes = judged(tmp_path / "writes", Writes(how), attack)
    pd.testing.assert_frame_equal(writes, plain)
    assert plain["adv_correct"].mean() < 1


@pytest.mark.parametrize("how", ["data", "in place", "nan"])
def test_nor_in_the_certificate(how: str) -> None:
    images = data()
    x, y = images.gather("test", torch.arange(images.count("test")))
    found = []
    for model in (Linear(), Writes(how)):
        before = x.clone()
        s = Subject(
            model.eval(), x, y, images.test_indices, THREAT, classes=2, seed=0, budget=BUDGETS["quick"]
        )
        attacked = s.strongest("t")
        grad = s.gradient(x, "g", nn.functional.cross_entropy)[0]
        found.append((s.clean, attacked.candidate, attacked.right, grad))
        assert torch.equal(x, before)
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)
    assert found[0][2].tolist() == truth()


def test_an_attack_leaves_its_images_alone_whatever_the_network_does() -> None:
    x, y = data().gather("test", torch.arange(12))
    before = x.clone()
    logits_in_parts(Writes("data").eval(), x)
    FGSM()(Writes("data").eval(), x, y, THREAT)
    assert torch.equal(x, before)


# Candidates that are no images ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gives(Attack):
    """An attack that returns what it is told to."""

    what: str = ""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        made: dict[str, Any] = {
            "one image": x[:1],
            "flat": x.flatten(1),
            "complex": x + 1j,
            "meta": x.to("meta"),
            "integers": (255 * x).long(),
            "a list": [x],
            "nothing": None,
        }
        out: Tensor = made[self.what]
        return out


@dataclass(frozen=True, kw_only=True)
class GivesAtOnce(Gives):
    """The same, past the base class's own look at it."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, generator: Any = None
    ) -> Tensor:
        return self.run(model, x, y, threat, generator)


@pytest.mark.parametrize("kind", [Gives, GivesAtOnce])
@pytest.mark.parametrize("what", ["one image", "flat", "complex", "meta", "integers", "a list", "nothing"])
def test_candidates_that_are_no_images_are_a_crash(tmp_path: Path, kind: type[Gives], what: str) -> None:
    judge = Judge(Linear().eval(), data(), tmp_path / "outcomes", Protocol(seed=1), "w", Silent())
    plan = AttackPlan("a", "a", kind(what=what), THREAT)
    assert len(judge.attack(plan)) == 0
    about = (tmp_path / "outcomes/a.json").read_text()
    assert '"status": "crashed"' in about
    assert "candidate: expected" in about
    x, y = data().gather("test", torch.arange(12))
    with pytest.raises(ValueError, match="candidate: expected"):
        Gives(what=what)(Linear().eval(), x, y, THREAT)


# Points outside the box -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Beyond(Attack):
    """Leaves the box in one pixel, so far that only what is clipped first lies in the ball and fools."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        step = -torch.where(y == 1, 1.0, -1.0)[:, None] * Linear().w.sign()
        out = (x.flatten(1) + threat.eps * step).view_as(x)
        out[:, 0, 0, 0] = torch.where(x[:, 0, 0, 0] > 0.5, 9.0, -9.0)
        return out


def test_a_candidate_is_clipped_to_the_box_before_it_is_held_against_the_ball(tmp_path: Path) -> None:
    x = torch.full((6, 1, 4, 4), 128, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.tensor([250, 251, 252, 4, 3, 2], dtype=torch.uint8)
    y = (Linear().score(x.float() / 255) > 0).long()
    images = PreparedData(
        Dataset(name="t", label="t", train_x=x, train_y=y, test_x=x, test_y=y, classes=("0", "1")),
        validation=0,
    )
    table = judged(tmp_path, Linear(), Beyond(), images)
    assert set(table["status"]) == {"outside_box"}
    assert table["linf"].tolist() == pytest.approx([EPS] * 6, abs=1e-6)


def test_a_check_whose_network_ends_the_program_fails_alone() -> None:
    class Leaves(Linear):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise SystemExit(0)
            return super().forward(x)

    from robustbench_sparse.certificate import certify

    images = data()
    x, y = images.gather("test", torch.arange(12))
    s = Subject(
        Leaves().eval(), x, y, images.test_indices, THREAT, classes=2, seed=0, budget=BUDGETS["quick"]
    )
    finding = certify._run(certify.CHECKS["M4"], s)
    assert finding.status == "failed"
    assert "SystemExit" in finding.done
    with pytest.raises((SystemExit, UserError)):
        s.strongest("t")
