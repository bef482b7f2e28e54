"""What comes back from an attack: images or not, in the box, in the ball."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from attacks.base import Attack, SampleRandom, Threat
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from tests.helpers.accidents import EPS, THREAT, Linear, data, judged, prepared, subject, tensors, truth

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
    judge = Judge(Linear().eval(), data(), tmp_path, JudgeSettings(seed=1), "w", Silent())
    plan = AttackPlan("a", "a", kind(what=what), THREAT)
    assert len(judge.attack(plan)) == 0
    about = (tmp_path / "outcomes/a.json").read_text()
    assert '"status": "crashed"' in about
    assert "candidate: expected" in about
    x, y = data().gather("test", torch.arange(12))
    with pytest.raises(ValueError, match="candidate: expected"):
        Gives(what=what)(Linear().eval(), x, y, THREAT)


@pytest.mark.parametrize("what", ["one image", "complex", "integers"])
def test_nor_are_they_judged_in_the_certificate(what: str) -> None:
    with pytest.raises(ValueError, match="candidate: expected"):
        subject(Linear()).attack(GivesAtOnce(what=what), "t")


# Points outside the box and the ball ----------------------------------------------------------------------

LONG = Threat(norm="l2", eps=0.3)


@dataclass(frozen=True, kw_only=True)
class Beyond(Attack):
    """Fools within the ball by all pixels but the first, which it sends far out of the box."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        away = torch.where(y == 1, -1.0, 1.0)[:, None] * Linear().w
        away[:, 0] = 0
        out = (x.flatten(1) + 0.25 * away / away.norm(dim=1, keepdim=True)).view_as(x)
        out[:, 0, 0, 0] = torch.where(x[:, 0, 0, 0] > 0.5, 9.0, -8.0)
        return out


def test_a_candidate_is_clipped_to_the_box_before_it_is_held_against_the_ball(tmp_path: Path) -> None:
    bytes_ = torch.full((6, 1, 4, 4), 128, dtype=torch.uint8)
    bytes_[:, 0, 0, 0] = torch.tensor([250, 251, 252, 4, 3, 2], dtype=torch.uint8)
    images = prepared(bytes_)
    x, y = images.gather("test", torch.arange(6))
    found = Beyond()(Linear().eval(), x, y, LONG)
    clipped = found.clamp(0, 1)
    assert (Linear()(clipped).argmax(1) != y).all()
    assert (Linear()(LONG.project(found, x)).argmax(1) == y).all(), "or the order does not matter"
    table = judged(tmp_path, Linear(), Beyond(), images, LONG)
    assert set(table["status"]) == {"outside_box"}
    assert table["adv_correct"].tolist() == [0] * 6
    assert table["l2"].tolist() == pytest.approx(LONG.size(clipped - x).tolist())


@dataclass(frozen=True, kw_only=True)
class Steps(Attack):
    """A step of ``factor`` eps along the sign of w, to where the linear network is least sure."""

    factor: float = 1.0

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        away = torch.where(y == 1, -1.0, 1.0)[:, None] * Linear().w.sign()
        return (x.flatten(1) + self.factor * threat.eps * away).view_as(x)


@dataclass(frozen=True, kw_only=True)
class LongSteps(Steps):
    """The same, of an attack that knows no ball; where the first pixel is bright, no images at all."""

    bounded: ClassVar[bool] = False

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        out = super().run(model, x, y, threat, random)
        return out.masked_fill((x[:, :, :1, :1] > 0.6), float("nan"))


def test_the_share_right_far_out_is_that_of_the_candidate_as_it_came(tmp_path: Path) -> None:
    factor = 3.0
    x, _ = tensors()
    net = Linear()
    far = (net.score(x).abs() > factor * EPS * net.w.abs().sum()).float()
    lost = (x[:, 0, 0, 0] > 0.6).tolist()
    assert 0 < sum(lost) < len(x)
    assert far.tolist() != truth(), "or the test shows nothing"
    table = judged(tmp_path / "long", net, LongSteps(factor=factor))
    for i, gone in enumerate(lost):
        known = (table["adv_correct"][i], table["far_correct"][i])
        if gone:
            assert table["status"][i] == "nonfinite"
            assert all(v != v for v in known), "no verdict, in the ball or out of it"
        else:
            assert known == (truth()[i], float(far[i]))
    assert list(table.columns).index("far_correct") == list(table.columns).index("distance") + 1


@pytest.mark.parametrize("attack", [Steps(factor=3.0), Steps(), LongSteps(factor=0.9)])
def test_where_nothing_was_moved_or_the_ball_is_known_it_is_the_verdict(
    tmp_path: Path, attack: Attack
) -> None:
    table = judged(tmp_path, Linear(), attack)
    shares = table["adv_correct"].astype(float)
    assert shares.notna().any()
    assert table["far_correct"].equals(shares)
