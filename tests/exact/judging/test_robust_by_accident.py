"""Networks that cannot be attacked, or that write where they should not, beside one whose true numbers are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from attacks import ATTACKS, FGSM, PGD
from attacks.base import Attack, SampleRandom, Threat
from attacks.iterate import steepest
from robustbench_sparse.engine.fast import FastNetwork, logits_in_parts
from tests.helpers.accidents import (
    COUNT,
    EPS,
    THREAT,
    Half,
    InfiniteGradient,
    Linear,
    NaNGradient,
    OffTheGrid,
    OnePixel,
    Writes,
    WritesIntoAnswers,
    judged,
    library_attack,
    small,
    tensors,
    truth,
)

OF_CLASSIFIERS = sorted(name for name, attack in ATTACKS.items() if "classify" in attack.tasks)
LIBRARY = ("FGSM", "PGD", "APGD", "EOTPGD", "MIFGSM", "FAB")


def test_the_attack_finds_the_truth_on_the_plain_network(tmp_path: Path) -> None:
    assert judged(tmp_path, Linear(), PGD(steps=20))["adv_correct"].tolist() == truth()


# Gradients and logits that are no numbers -----------------------------------------------------------------


def assert_none_withstood(table: pd.DataFrame) -> None:
    """No image has a verdict "right" that could not be attacked."""
    assert len(table) == COUNT
    assert not (table["adv_correct"] > 0.5).any(), table[["adv_correct", "status", "linf"]]


@pytest.mark.parametrize("network", [NaNGradient, InfiniteGradient, OffTheGrid])
@pytest.mark.parametrize("name", LIBRARY)
def test_the_librarys_attacks_on_what_cannot_be_attacked(
    tmp_path: Path, name: str, network: type[Linear]
) -> None:
    table = judged(tmp_path, network(), library_attack(name))
    assert_none_withstood(table)
    assert set(table["status"]) <= {"nonfinite", "ok"}


@pytest.mark.parametrize("network", [NaNGradient, InfiniteGradient])
@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_own_attacks_on_a_network_without_gradients(tmp_path: Path, name: str, network: type[Linear]) -> None:
    attack = small(name)
    table = judged(tmp_path, network(), attack)
    if attack.black_box or name == "noise":  # these ask for no gradient
        pure = judged(tmp_path / "plain", Linear(), attack)
        assert table["adv_correct"].tolist() == pure["adv_correct"].tolist()
    else:
        assert_none_withstood(table)


@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_own_attacks_on_a_network_without_numbers(tmp_path: Path, name: str) -> None:
    assert_none_withstood(judged(tmp_path, OffTheGrid(), small(name)))


@pytest.mark.parametrize("name", ["cw", "fab", "torchattacks:FAB"])
def test_nor_does_the_way_back_into_the_ball_make_one_withstand(tmp_path: Path, name: str) -> None:
    """Projected onto a ball of whole steps, a point off the grid lies on it again, and its logits are numbers."""
    assert_none_withstood(judged(tmp_path, OffTheGrid(), small(name), threat=Threat(eps=8 / 255)))


def test_one_image_that_cannot_be_attacked_costs_the_others_nothing(tmp_path: Path) -> None:
    x, _ = tensors()
    first = x.flatten(1)[:, 0]
    far = (first - 0.5).abs() > 2 * EPS  # the others cross over under attack
    broken = first > 0.5
    assert 0 < int((broken & far).sum()) < int(far.sum())
    table = judged(tmp_path, Half(), library_attack("PGD"))
    stays = (far & ~broken).tolist()
    assert [r for r, s in zip(table["adv_correct"], stays, strict=True) if s] == [
        r for r, s in zip(truth(), stays, strict=True) if s
    ]
    assert {v for v, s in zip(table["status"], stays, strict=True) if s} == {"ok"}
    assert not (table["adv_correct"][(far & broken).tolist()] > 0.5).any()


def test_what_fools_all_the_same_counts(tmp_path: Path) -> None:
    """Without the gradient of one pixel, FGSM moves the others."""
    x, _ = tensors()
    w = Linear().w
    fooled = (Linear().score(x).abs() < EPS * (w.abs().sum() - w[0].abs())).tolist()
    assert 0 < sum(fooled) < COUNT
    table = judged(tmp_path, OnePixel(), library_attack("FGSM"))
    assert table["status"].tolist() == ["ok" if f else "nonfinite" for f in fooled]
    assert not table["adv_correct"][fooled].any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_step_along_no_direction_is_none(norm: Any, value: float) -> None:
    direction = torch.tensor([[3.0, value], [3.0, -4.0]])
    step = steepest(direction, norm)
    assert step[0].isnan().any()
    assert step[1].tolist() == pytest.approx([1, -1] if norm == "linf" else [0.6, -0.8])


# Networks that write into what is not theirs --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Foreign(Attack):
    """One step along a gradient of its own, past the base class's call; the point is used again afterwards."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, generator: Any = None
    ) -> Tensor:
        point = x.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(point), y), point)
        return threat.project(point.detach() + threat.eps * grad.sign(), x)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("how", ["data", "in place", "nan"])
@pytest.mark.parametrize("name", [*OF_CLASSIFIERS, "torchattacks:PGD", "foreign"])
def test_what_a_network_writes_changes_nothing(tmp_path: Path, name: str, how: str) -> None:
    attack = Foreign() if name == "foreign" else small(name)
    plain = judged(tmp_path / "plain", Linear(), attack)
    writes = judged(tmp_path / "writes", Writes(how), attack)
    pd.testing.assert_frame_equal(writes, plain)
    assert plain["adv_correct"].mean() < 1


@pytest.mark.parametrize("name", ["fgsm", "apgd", "autoattack", "fab", "torchattacks:PGD"])
def test_nor_what_it_writes_into_earlier_answers(tmp_path: Path, name: str) -> None:
    plain = judged(tmp_path / "plain", Linear(), small(name))
    writes = judged(tmp_path / "writes", WritesIntoAnswers(), small(name))
    pd.testing.assert_frame_equal(writes, plain)


def test_an_attack_leaves_its_images_alone_whatever_the_network_does() -> None:
    x, y = tensors()
    before = x.clone()
    logits_in_parts(Writes("data").eval(), x)
    FGSM()(Writes("data").eval(), x, y, THREAT)
    assert torch.equal(x, before)


@pytest.mark.parametrize("network", [lambda: Writes("data"), WritesIntoAnswers])
def test_logits_of_many_images_are_those_of_each(network: Any) -> None:
    x = tensors()[0].repeat(25, 1, 1, 1)  # of more than one part
    before = x.clone()
    with torch.no_grad():
        assert torch.equal(logits_in_parts(network().eval(), x), Linear()(before))
    assert torch.equal(x, before)


def test_an_answer_that_is_a_part_of_the_image_is_no_way_to_it() -> None:
    class FirstPixels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2]

    x, _ = tensors()
    before = x.clone()
    logits_in_parts(FirstPixels().eval(), x).zero_()
    assert torch.equal(x, before)


def test_a_network_whose_copy_ends_the_program_has_no_stand_in() -> None:
    class Leaves(Linear):
        def __deepcopy__(self, memo: Any) -> Leaves:
            raise SystemExit(0)

    with pytest.raises(ValueError, match="cannot be copied"):
        FastNetwork(Leaves().eval())
