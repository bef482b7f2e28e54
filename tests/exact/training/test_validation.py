"""Which epoch is kept, and what it is judged by: the deployed network on the validation part, clean or attacked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.base import Threat
from defenses.robust import attacking
from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.streams import Streams
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.training import validation
from robustbench_sparse.training.validation import Validation, keep
from tests.helpers.small import small


class Bright(nn.Module):
    """Class 1 where the mean pixel is above a half, with a slope that attacks can climb."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1).mean(1) - 0.5
        return torch.stack([-z, z], 1)


def data(count: int = 40, validation_images: int = 20) -> PreparedData:
    x = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    y = torch.arange(count) % 2
    # Half of each class lies close to the boundary: 0.5 +- 0.04; the other half far: 0.5 +- 0.3.
    far = (torch.arange(count) // 2) % 2 == 1
    offset = torch.where(far, 0.3, 0.04) * (2 * y - 1)
    x[:] = ((0.5 + offset) * 255).round().to(torch.uint8)[:, None, None, None]
    images = Dataset(name="t", label="t", train_x=x, train_y=y, test_x=x, test_y=y, classes=("a", "b"))
    return PreparedData(images, validation=validation_images)


def test_clean_and_attacked_shares_are_those_counted_by_hand() -> None:
    images = data()
    v = Validation(images, Threat(eps=0.1), Streams(0))
    assert v.measured(Bright().eval()) == 1.0
    x, _ = images.gather("val", torch.arange(20))
    far = ((x.flatten(1).mean(1) - 0.5).abs() > 0.1).float().mean().item()
    assert 0 < far < 1
    assert v.adversarial_accuracy(Bright().eval()) == pytest.approx(far)


def test_attacked_part_by_part_the_share_and_what_is_drawn_after_it_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, drawn, seen = [], [], list[int]()
    for together in (1000, 1):
        monkeypatch.setattr(attacking, "_TOGETHER", together)
        streams, network = Streams(0), Bright().eval()
        network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        found.append(Validation(data(), Threat(eps=0.1), streams).adversarial_accuracy(network))
        drawn.append(torch.rand(3, generator=streams.get("validation")))
    assert found[0] == found[1]
    assert torch.equal(*drawn)
    assert min(seen) <= torch.get_num_threads() < max(seen)


def test_an_empty_part_says_nothing() -> None:
    v = Validation(data(validation_images=0), Threat(eps=0.1), Streams(0))
    assert math.isnan(v.measured(Bright().eval()))
    assert math.isnan(v.adversarial_accuracy(Bright().eval()))


def test_at_most_so_many_images_are_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = validation.ATTACK

    def counted(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        seen.append(len(x))
        return whole(model, x, *rest)

    monkeypatch.setattr(validation, "ATTACK", counted)
    monkeypatch.setattr(validation, "ATTACKED", 7)
    monkeypatch.setattr(validation, "_BATCH", 5)
    Validation(data(), Threat(eps=0.1), Streams(0)).adversarial_accuracy(Bright().eval())
    assert seen == [5, 2]


def kept(rule: Any, scores: list[float], after: int = 0) -> tuple[float, float]:
    """The epoch that is kept, and the last one."""
    trained = Trained()
    for epoch, score in enumerate(scores):
        network = nn.Linear(1, 1)
        nn.init.constant_(network.weight, epoch)
        keep(trained, rule, after, score, {"stage": 0, "epoch": epoch}, network)
        assert trained.weights == {} or trained.weights["weight"].item() == trained.selected["epoch"]
        assert trained.last_weights["weight"].item() == epoch
    return trained.selected["epoch"], trained.last["epoch"]


def test_the_best_epoch_is_the_first_of_the_highest_score() -> None:
    assert kept("best", [0.2, 0.9, 0.9, 0.4]) == (1, 3)
    assert kept("adversarial", [0.2, 0.9, 0.9, 0.4], after=2) == (2, 3)
    assert kept("last", [0.9, 0.2]) == (1, 1)


PGD = {"name": "pgd_at", "steps": 2}


@pytest.mark.parametrize(
    ("defenses", "expected"),
    [
        ([], "best"),
        ([PGD], "adversarial"),
        ([{**PGD, "eps": 0.0}], "best"),
        (["lasso"], "best"),
        (["lasso", PGD], "adversarial"),
    ],
)
def test_networks_trained_on_attacked_images_are_chosen_by_attacked_images(
    defenses: list[Any], expected: str
) -> None:
    (run,) = resolve(small(runs={"r": {"defenses": defenses}})).runs
    assert [stage.selection for stage in run.stages] == [expected]
    assert run.record()["stages"][0]["selection"] == expected


def test_the_choice_belongs_to_the_stage_in_which_images_are_attacked() -> None:
    runs = {"r": {"defenses": [{**PGD, "stages": [1]}], "train": {"stages": [{}, {"epochs": 1}]}}}
    (run,) = resolve(small(runs=runs)).runs
    assert [stage.selection for stage in run.stages] == ["best", "adversarial"]


def test_what_the_user_says_wins() -> None:
    runs = {"r": {"defenses": [PGD], "train": {"selection": "best"}}}
    assert resolve(small(runs=runs)).runs[0].stages[0].selection == "best"


def test_a_choice_needs_validation_images() -> None:
    with pytest.raises(UserError, match="selection 'adversarial' needs a validation part"):
        resolve(small(validation=0, runs={"r": {"defenses": [PGD]}}))
