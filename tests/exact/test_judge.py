"""The judge measures what an attack returns: norms, box, success, cost; and a failed attack is no success."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from attacks import PGD
from attacks.base import Attack, RandomModule, SampleRandom, Threat
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.files import read_json
from robustbench_sparse.judge import Judge, Protocol
from robustbench_sparse.plan import AttackPlan
from robustbench_sparse.progress import Silent

N = 24


class Threshold(nn.Module):
    """Class 1 exactly when the first pixel is above one half; ``nan_above`` breaks it for bright images."""

    def __init__(self, nan_above: float = math.inf) -> None:
        super().__init__()
        self.nan_above = nan_above

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0]
        out = torch.stack((0.5 - first, first - 0.5), 1)
        return torch.where(first[:, None] > self.nan_above, torch.full_like(out, math.nan), out)


def images() -> PreparedData:
    """First pixel 0.2 and label 0, or 0.8 and label 1; the last two images have the wrong label."""
    x = torch.zeros(N, 1, 2, 2, dtype=torch.uint8)
    y = torch.arange(N) % 2
    x[:, 0, 0, 0] = torch.where(y == 1, 204, 51).to(torch.uint8)
    y[-2:] = 1 - y[-2:]
    data = Dataset(name="toy", label="toy", train_x=x, train_y=y, test_x=x, test_y=y, classes=("a", "b"))
    return PreparedData(data, validation=0)


def judge(folder: Path, model: nn.Module, batch_size: int = 5, draws: int = 4) -> Judge:
    protocol = Protocol(seed=3, batch_size=batch_size, draws=draws)
    return Judge(model.eval(), images(), folder, protocol, "weights", Silent())


@dataclass(frozen=True, kw_only=True)
class Shift(Attack):
    """Moves the first pixel by a fixed amount towards the other class, whatever the threat says."""

    amount: float = 0.4
    calls: int = 1

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        for _ in range(self.calls):
            point = x.clone().requires_grad_(True)
            with torch.enable_grad():
                torch.autograd.grad(model(point).sum(), point)
        out = x.clone()
        out[:, 0, 0, 0] += torch.where(y == 1, -self.amount, self.amount)
        return out


def plan(attack: Attack, **threat: object) -> AttackPlan:
    return AttackPlan("a", "a", attack, Threat(**({"eps": 0.4} | threat)))  # type: ignore[arg-type]


def accuracy(table: pd.DataFrame) -> float:
    return float(table["adv_correct"].mean())


def test_clean_verdicts_and_a_successful_attack(tmp_path: Path) -> None:
    j = judge(tmp_path, Threshold())
    clean = j.clean()
    assert clean["correct"].tolist() == [1.0] * (N - 2) + [0.0] * 2
    table = j.attack(plan(Shift(calls=3)))
    assert accuracy(table) == 0.0
    attacked = table.iloc[: N - 2]
    assert attacked["linf"].tolist() == pytest.approx([0.4] * (N - 2))
    assert attacked["l2"].tolist() == pytest.approx([0.4] * (N - 2))
    assert (attacked["forward"] == 3).all()
    assert (attacked["backward"] == 3).all()
    assert (table["status"] == "ok").all()
    # An image that was wrong anyway is not attacked: it is its own adversarial example.
    assert (table.iloc[N - 2 :][["linf", "forward", "backward"]] == 0).all(axis=None)


def test_a_candidate_outside_the_ball_is_projected_and_judged_again(tmp_path: Path) -> None:
    """0.4 fools, 0.1 does not: the norm is measured, not believed."""
    table = judge(tmp_path, Threshold()).attack(plan(Shift(), eps=0.1))
    assert accuracy(table) == pytest.approx((N - 2) / N)
    assert table["linf"].max() == pytest.approx(0.1)
    assert table["status"].value_counts()["outside_ball"] == N - 2


def test_a_candidate_outside_the_box_is_projected_and_flagged(tmp_path: Path) -> None:
    table = judge(tmp_path, Threshold()).attack(plan(Shift(amount=0.9), eps=1.0))
    assert accuracy(table) == 0.0
    assert table["linf"].max() == pytest.approx(0.8)
    assert table["status"].value_counts()["outside_box"] == N - 2


@dataclass(frozen=True, kw_only=True)
class Crash(Attack):
    """Fails."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        raise RuntimeError("out of\nluck")


def test_a_crash_leaves_no_verdict_and_is_tried_again(tmp_path: Path) -> None:
    j = judge(tmp_path, Threshold())
    j.attack(plan(Crash()))
    meta = read_json(tmp_path / "a.json")
    assert meta["status"] == "crashed"
    assert meta["reason"] == "RuntimeError: out of luck"
    assert not j.is_done("a", plan(Crash()).record())
    assert accuracy(j.attack(plan(Shift()))) == 0.0, "a mended attack is judged anew"


@dataclass(frozen=True, kw_only=True)
class NotANumber(Attack):
    """Returns NaN."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        return x * math.nan


@pytest.mark.parametrize(("attack", "network"), [(NotANumber(), Threshold()), (Shift(), Threshold(0.55))])
def test_a_value_that_is_not_finite_is_no_verdict(tmp_path: Path, attack: Attack, network: nn.Module) -> None:
    """Neither a candidate of NaN nor logits of NaN count as robust, though argmax would pick class 0."""
    j = Judge(network.eval(), images(), tmp_path, Protocol(seed=3), "weights", Silent())
    table = j.attack(plan(attack))
    lost = table["status"] == "nonfinite"
    assert lost.sum() >= 10
    assert table.loc[lost, "adv_correct"].isna().all()
    assert read_json(tmp_path / "a.json")["status"] == "nonfinite"


class Coin(nn.Module):
    """Class 1 in about 70 % of the passes, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = RandomModule()

    def forward(self, x: Tensor) -> Tensor:
        draw = self.noise.draw(x[:, 0, 0, :1])  # (B, 1), N(0, 1)
        return torch.cat((torch.zeros_like(draw), draw + 0.5244), 1)  # P(N > -0.5244) = 0.70


def test_a_random_network_is_judged_over_many_draws(tmp_path: Path) -> None:
    table = judge(tmp_path, Coin(), draws=400).clean()
    share = table["correct"].where(table["label"] == 1, 1 - table["correct"])
    # 400 draws: a standard deviation of 0.023 per image; five of them, and 1/sqrt(24) of that for the mean.
    assert share.between(0.70 - 0.115, 0.70 + 0.115).all()
    assert share.mean() == pytest.approx(0.70, abs=0.024)
    assert (table["pred"] == 1).all(), "the majority"
    assert share.nunique() > 5, "every image has noise of its own"


@pytest.mark.parametrize("network", [Threshold(), Coin()])
def test_outcomes_do_not_depend_on_the_batch_size(tmp_path: Path, network: nn.Module) -> None:
    attack = plan(PGD(steps=3), eps=0.3)
    small = judge(tmp_path / "small", network, batch_size=1).attack(attack)
    large = judge(tmp_path / "large", network, batch_size=N).attack(attack)
    pd.testing.assert_frame_equal(small, large)


def test_stored_outcomes_are_used_only_for_the_same_question(tmp_path: Path) -> None:
    first = judge(tmp_path, Threshold()).attack(plan(Shift(amount=0.4)))
    again = judge(tmp_path, Threshold()).attack(plan(Shift(amount=0.4)))
    pd.testing.assert_frame_equal(first, again)
    other = judge(tmp_path, Threshold()).attack(plan(Shift(amount=0.1)))
    assert accuracy(other) == pytest.approx((N - 2) / N)
