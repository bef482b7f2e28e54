"""Shifted images are judged as clean ones are, image by image; what cannot be judged has no number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks.base import RandomModule, SampleRandom
from robustbench_sparse.config.plan import ShiftPlan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.judging import shifted
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from robustbench_sparse.judging.shifted import ShiftedJudge
from robustbench_sparse.shifts import Shift
from robustbench_sparse.shifts.light import Brightness
from robustbench_sparse.shifts.noise import GaussianNoise
from robustbench_sparse.shifts.resolution import Resolution

N = 24


class Brighter(nn.Module):
    """Class 1 exactly when the mean is above one half. Calls and sizes are counted; ``stop`` ends the program once."""

    def __init__(self, stop: int = -1) -> None:
        super().__init__()
        self.stop = stop
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt
        mean = x.flatten(1).mean(1)
        return torch.stack((0.5 - mean, mean - 0.5), 1)


def images() -> PreparedData:
    """Grey levels from 0.02 to 0.96, label 1 for those above one half."""
    grey = torch.arange(5, 5 + 10 * N, 10)
    x = grey.view(-1, 1, 1, 1).expand(N, 1, 8, 8).to(torch.uint8).contiguous()
    y = (grey > 127).long()
    data = Dataset(name="toy", label="toy", train_x=x, train_y=y, test_x=x, test_y=y, classes=("a", "b"))
    return PreparedData(data, validation=0)


def judge(folder: Path, model: nn.Module, batch_size: int = 5, draws: int = 4, seed: int = 3) -> ShiftedJudge:
    settings = JudgeSettings(seed=seed, batch_size=batch_size, draws=draws)
    return ShiftedJudge(Judge(model.eval(), images(), folder, settings, "weights", Silent()))


def plan(shift: Shift, label: str = "s") -> ShiftPlan:
    return ShiftPlan(label, type(shift).key, shift)


def outcome(folder: Path, label: str = "s") -> bytes:
    return (folder / "outcomes" / f"{label}.csv").read_bytes()


def test_every_image_has_its_verdict(tmp_path: Path) -> None:
    table = judge(tmp_path, Brighter()).shift(plan(Brightness(severity=5)))
    grey = torch.arange(5, 5 + 10 * N, 10) / 255
    said = (grey + 0.3).clamp(max=1) > 0.5
    assert table["index"].tolist() == list(range(N))
    assert table["label"].tolist() == (grey > 0.5).long().tolist()
    assert table["pred"].tolist() == said.long().tolist()
    assert table["correct"].tolist() == (said == (grey > 0.5)).float().tolist()
    assert 0 < table["correct"].mean() < 1
    assert (table["status"] == "ok").all()
    account = read_json(tmp_path / "outcomes" / "s.json")
    assert account["key"]["shift"] == {"name": "brightness", "severity": 5}
    assert "attack" not in account["key"]


def test_an_image_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    shift = plan(GaussianNoise(severity=5))
    first = judge(tmp_path / "a", Brighter(), batch_size=5).shift(shift)
    second = judge(tmp_path / "b", Brighter(), batch_size=24).shift(shift)
    assert first.drop(columns="seconds", errors="ignore").equals(
        second.drop(columns="seconds", errors="ignore")
    )


class NoisyBrighter(RandomModule):
    """Adds noise to the mean."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1, keepdim=True)
        mean = mean + 0.2 * self.draw(mean)
        return torch.cat((0.5 - mean, mean - 0.5), 1)


def test_a_random_network_is_judged_over_many_draws(tmp_path: Path) -> None:
    shift = plan(Brightness(severity=1))
    table = judge(tmp_path / "a", NoisyBrighter(), draws=8).shift(shift)
    assert set(table["correct"]) > {0.5} or table["correct"].between(0.01, 0.99).any()
    assert ((8 * table["correct"]) % 1 == 0).all()
    assert (table["forward"] == 8).all()
    again = judge(tmp_path / "b", NoisyBrighter(), draws=8, batch_size=24).shift(shift)
    assert again["correct"].tolist() == table["correct"].tolist()


# What goes wrong --------------------------------------------------------------------------------------------------


def grey_linear() -> nn.Module:
    """Takes images of 8 x 8 only."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


class Rows(nn.Module):
    """Takes any number of pixels, and makes more rows of logits of larger images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 64)[:, :2]


@pytest.mark.parametrize("network", [grey_linear, Rows])
def test_a_network_that_cannot_take_the_size_has_no_number(
    tmp_path: Path, network: Callable[[], nn.Module]
) -> None:
    mine, shift = judge(tmp_path, network()), plan(Resolution(size=16))
    table = mine.shift(shift)
    assert len(table) == 0
    account = read_json(tmp_path / "outcomes" / "s.json")
    assert account["status"] == "crashed"
    assert account["reason"]
    assert not mine.all_done([shift]), "it is tried again"
    other = plan(Resolution(size=8), "own")
    assert len(mine.shift(other)) == N, "the next one is judged"


class BreaksOnBright(Brighter):
    """Gives NaN for images that are bright throughout."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).amin(1, keepdim=True) > 0.9
        return torch.where(bright, math.nan, super().forward(x))


def test_logits_that_are_not_finite_are_no_verdict(tmp_path: Path) -> None:
    table = judge(tmp_path, BreaksOnBright()).shift(plan(Brightness(severity=5)))
    lost = table["status"] == "nonfinite"
    assert 0 < lost.sum() < N
    assert table["correct"].isna().equals(lost)
    assert read_json(tmp_path / "outcomes" / "s.json")["status"] == "nonfinite"


@dataclass(frozen=True, kw_only=True)
class Breaks(Shift):
    """Gives something that is no image."""

    key = "breaks"
    kind: str = "nan"

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        return x * math.nan if self.kind == "nan" else x[..., :-1]


@pytest.mark.parametrize(("kind", "status"), [("nan", "nonfinite"), ("smaller", "crashed")])
def test_a_shift_that_breaks_is_no_verdict(tmp_path: Path, kind: str, status: str) -> None:
    judge(tmp_path, Brighter()).shift(plan(Breaks(kind=kind)))
    assert read_json(tmp_path / "outcomes" / "s.json")["status"] == status


# What is stored ---------------------------------------------------------------------------------------------------


def test_what_is_stored_serves_only_for_the_same_question(tmp_path: Path) -> None:
    shift = plan(GaussianNoise(severity=2))
    judge(tmp_path, Brighter()).shift(shift)
    kept, asked = outcome(tmp_path), Brighter()
    mine = judge(tmp_path, asked)
    assert mine.all_done([shift])
    mine.everything([shift])
    assert asked.seen == []
    for other in (
        lambda: judge(tmp_path, Brighter()).all_done([plan(GaussianNoise(severity=3))]),
        lambda: judge(tmp_path, Brighter(), seed=4).all_done([shift]),
        lambda: judge(tmp_path, NoisyBrighter()).all_done([shift]),
    ):
        assert not other()
    (tmp_path / "outcomes" / "s.csv").write_bytes(kept.replace(b"1.0", b"0.0", 1))
    assert not mine.all_done([shift]), "changed since it was stored"
    mine.everything([shift])
    assert outcome(tmp_path) == kept


def test_a_killed_evaluation_goes_on_after_its_last_batch(tmp_path: Path) -> None:
    shift = plan(GaussianNoise(severity=5))
    judge(tmp_path / "whole", Brighter()).shift(shift)
    with pytest.raises(KeyboardInterrupt):
        judge(tmp_path / "killed", Brighter(stop=4)).shift(shift)
    rest = Brighter()
    judge(tmp_path / "killed", rest).shift(shift)
    assert [shape[0] for shape in rest.seen] == [5, 4], "three batches of five were there"
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert [p.name for p in (tmp_path / "killed" / "outcomes").iterdir() if p.name.startswith(".")] == []


def test_enlarged_images_go_in_fewer_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shifted, "TOGETHER", 8)
    network = Brighter()
    judge(tmp_path / "a", network, batch_size=24).shift(plan(Resolution(size=16)))
    assert {shape[0] for shape in network.seen} == {2}
    network = Brighter()
    judge(tmp_path / "b", network, batch_size=24).shift(plan(Resolution(size=4)))
    assert {shape[0] for shape in network.seen} == {8}
