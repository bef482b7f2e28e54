"""The judge measures what an attack returns: norms, box, success, cost; and a failed attack is no success."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from attacks import PGD
from attacks.base import Attack, RandomModule, SampleRandom, Threat
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from robustbench_sparse.runs.outcomes import unchanged

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
    protocol = JudgeSettings(seed=3, batch_size=batch_size, draws=draws)
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
    meta = read_json(tmp_path / "outcomes" / "a.json")
    assert meta["status"] == "crashed"
    assert meta["reason"] == "RuntimeError: out of luck"
    assert not j.store.is_done("a", j.key(plan(Crash())))
    assert accuracy(j.attack(plan(Shift()))) == 0.0, "a mended attack is judged anew"


@dataclass(frozen=True, kw_only=True)
class NotANumber(Attack):
    """Returns NaN."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        return x * math.nan


@pytest.mark.parametrize(("attack", "network"), [(NotANumber(), Threshold()), (Shift(), Threshold(0.55))])
def test_a_value_that_is_not_finite_is_no_verdict(tmp_path: Path, attack: Attack, network: nn.Module) -> None:
    """Neither a candidate of NaN nor logits of NaN count as robust, though argmax would pick class 0."""
    j = Judge(network.eval(), images(), tmp_path, JudgeSettings(seed=3), "weights", Silent())
    table = j.attack(plan(attack))
    lost = table["status"] == "nonfinite"
    assert lost.sum() >= 10
    assert table.loc[lost, "adv_correct"].isna().all()
    assert read_json(tmp_path / "outcomes" / "a.json")["status"] == "nonfinite"


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


@dataclass(frozen=True, kw_only=True)
class Far(Shift):
    """The same, of the kind that knows no ball."""

    bounded: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Elsewhere(Far):
    """The same again, with a set of its own."""

    own_set: ClassVar[bool] = True


def distances(table: pd.DataFrame) -> list[float]:
    """Of the images that are right without an attack, each value once; the others are at distance 0."""
    assert (table["distance"][N - 2 :] == 0).all()
    return sorted(table["distance"][: N - 2].round(5).unique().tolist())


def test_the_distance_is_that_of_what_the_attack_returned(tmp_path: Path) -> None:
    """In a ball of 0.1 no candidate fools; where it came from, it does: at 0.4, and clipped to the box at 0.8."""
    table = judge(tmp_path / "a", Threshold()).attack(plan(Far(), eps=0.1))
    assert accuracy(table) == pytest.approx((N - 2) / N)
    assert distances(table) == pytest.approx([0.4])
    table = judge(tmp_path / "b", Threshold()).attack(plan(Far(amount=0.9), eps=0.1))
    assert distances(table) == pytest.approx([0.8])
    table = judge(tmp_path / "c", Threshold()).attack(plan(Far(amount=0.2), eps=0.1))
    assert distances(table) == [math.inf], "it does not fool"
    again = judge(tmp_path / "c", Threshold()).attack(plan(Far(amount=0.2), eps=0.1))
    pd.testing.assert_frame_equal(table, again)
    meta = read_json(tmp_path / "c" / "outcomes" / "a.json")
    assert (meta["bounded"], meta["minimum_norm"]) == (False, True)


def test_the_distance_is_in_the_threats_norm(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Two(Far):
        def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
            out = super().run(model, x, y, threat, random)
            out[:, 0, 1, 1] += 0.3
            return out

    for norm, size in (("l2", 0.5), ("linf", 0.4)):
        table = judge(tmp_path / norm, Threshold()).attack(plan(Two(), norm=norm, eps=0.1))
        assert distances(table) == pytest.approx([size])


def test_the_distance_under_a_bounded_attack_is_that_of_the_candidate_judged(tmp_path: Path) -> None:
    table = judge(tmp_path / "a", Threshold()).attack(plan(Shift(), eps=0.35))
    assert accuracy(table) == 0.0
    assert distances(table) == pytest.approx([0.35])
    table = judge(tmp_path / "b", Threshold()).attack(plan(Shift(), eps=0.1))
    assert distances(table) == [math.inf]
    assert read_json(tmp_path / "a" / "outcomes" / "a.json")["minimum_norm"] is False


def test_a_set_of_its_own_has_no_distance(tmp_path: Path) -> None:
    table = judge(tmp_path, Threshold()).attack(plan(Elsewhere(), eps=0.1))
    assert accuracy(table) == 0.0
    assert table["distance"].isna().all()
    assert read_json(tmp_path / "outcomes" / "a.json")["minimum_norm"] is False


def test_only_candidates_that_were_moved_take_another_verdict(tmp_path: Path) -> None:
    class Counting(Threshold):
        seen = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.seen += len(x)
            return super().forward(x)

    for eps, extra in ((0.1, N - 2), (0.5, 0)):
        j = judge(tmp_path / str(eps), Counting())
        j.clean()
        Counting.seen = 0
        j.attack(plan(Far(), eps=eps))
        assert Counting.seen == (N - 2) + N + extra, "the attack's own, the verdicts, the distances"


def test_a_value_that_is_not_finite_has_no_distance(tmp_path: Path) -> None:
    """Bright images have no logits: where the raw candidate is one, nothing says whether it fools."""
    table = judge(tmp_path, Threshold(0.55)).attack(plan(Far(), eps=0.1))
    bright = (table["label"] == 0) & (table["clean_correct"] == 1)
    assert bright.sum() >= 10
    assert table.loc[bright, "distance"].isna().all()


class Fading(nn.Module):
    """Class 1 with a probability that falls from the first pixel's value: 0.8 gives 95 %, 0.5 half, 0.2 hardly any."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = RandomModule()

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, :1]
        draw = self.noise.draw(first)
        return torch.cat((torch.zeros_like(first), (first - 0.5) / 0.18 + draw), 1)


def test_a_random_network_is_fooled_where_half_of_the_draws_are_wrong(tmp_path: Path) -> None:
    table = judge(tmp_path / "far", Fading(), draws=100).attack(plan(Far(amount=0.45), eps=0.1))
    assert distances(table) == pytest.approx([0.45])
    table = judge(tmp_path / "near", Fading(), draws=100).attack(plan(Far(amount=0.15), eps=0.1))
    assert distances(table) == [math.inf], "four draws in five are right"
    assert accuracy(table) < 0.95
    small = judge(tmp_path / "small", Fading(), batch_size=1).attack(plan(Far(amount=0.3), eps=0.1))
    large = judge(tmp_path / "large", Fading(), batch_size=N).attack(plan(Far(amount=0.3), eps=0.1))
    pd.testing.assert_series_equal(small["distance"], large["distance"])
    assert small["distance"][: N - 2].nunique() == 2, "a coin decides at one half"


@dataclass(frozen=True, kw_only=True)
class Together(Shift):
    """Its candidates depend on the batch."""

    batch_dependent: ClassVar[bool] = True


@pytest.mark.parametrize("attack", [Shift(), Together()])
def test_the_batch_size_is_part_of_the_question_where_the_attack_depends_on_it(
    tmp_path: Path, attack: Attack
) -> None:
    judge(tmp_path, Threshold(), batch_size=5).attack(plan(attack))
    key = read_json(tmp_path / "outcomes" / "a.json")["key"]
    assert key.get("batch_size") == (5 if attack.batch_dependent else None)
    assert "batch_size" not in key["attack"], "the leaderboard compares it with the benchmark's settings"
    assert judge(tmp_path, Threshold(), batch_size=5).all_done([plan(attack)])
    again = judge(tmp_path, Threshold(), batch_size=8)
    assert again.all_done([plan(attack)]) != attack.batch_dependent
    again.attack(plan(attack))
    key = read_json(tmp_path / "outcomes" / "a.json")["key"]
    assert key.get("batch_size") == (8 if attack.batch_dependent else None)


class TestReference:
    """``reference: prediction`` (Roith 1.2): broken is what changes the prediction; the last two images start wrong."""

    def test_misclassified_images_are_attacked_too_and_by_their_prediction(self, tmp_path: Path) -> None:
        table = judge(tmp_path, Threshold()).attack(plan(Shift(reference="prediction")))
        assert (table["linf"] > 0.39).all()
        assert (table["forward"] == 2).all(), "one to know the prediction, one of the attack's own"
        assert (table["adv_pred"] != table["clean_pred"]).all()
        assert unchanged(table).tolist() == [0.0] * N
        # Pushed away from its wrong prediction, an image becomes right: the true label is no measure of success here.
        assert table["adv_correct"].tolist() == [0.0] * (N - 2) + [1.0] * 2

    def test_what_does_not_move_it_leaves_it_unchanged(self, tmp_path: Path) -> None:
        table = judge(tmp_path, Threshold()).attack(plan(Shift(reference="prediction", amount=0.1)))
        assert unchanged(table).tolist() == [1.0] * N
        assert table["adv_correct"].tolist() == [1.0] * (N - 2) + [0.0] * 2

    def test_without_a_verdict_nothing_is_unchanged(self, tmp_path: Path) -> None:
        attack = plan(Shift(reference="prediction"))
        table = judge(tmp_path, Threshold(0.55)).attack(attack)
        assert unchanged(table).isna().tolist() == table["adv_correct"].isna().tolist()
        assert unchanged(table).isna().sum() >= 10

    def test_the_key_names_it(self, tmp_path: Path) -> None:
        j = judge(tmp_path, Threshold())
        assert "reference" not in j.key(plan(Shift()))["attack"]
        assert j.key(plan(Shift(reference="prediction")))["attack"]["reference"] == "prediction"
        j.attack(plan(Shift()))
        assert not j.all_done([plan(Shift(reference="prediction"))])
