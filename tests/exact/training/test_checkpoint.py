"""The state of a training in one file: everything comes back, and what does not fit is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from defenses import RVSM, HoldZeros
from defenses.base import Defense
from robustbench_sparse.config.optimizers import SCHEDULES
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.streams import Streams
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.training.checkpoint import Checkpoint, Moment

CPU = torch.device("cpu")


class Sitting:
    """One process's part of a training."""

    def __init__(self, path: Path, defenses: list[Defense] | None = None, width: int = 3) -> None:
        torch.manual_seed(width)
        self.model = nn.Linear(width, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.schedule = SCHEDULES["constant"]().build(self.optimizer, 3, 2)
        self.streams, self.trained = Streams(7), Trained()
        self.checkpoint = Checkpoint(path, self.model, defenses or [], self.streams, self.trained)

    def step(self) -> None:
        self.optimizer.zero_grad()
        x = torch.randn(4, self.model.in_features, generator=self.streams.get("data"))
        self.model(x).square().sum().backward()
        self.optimizer.step()

    def write(self, at: Moment) -> None:
        self.checkpoint.write(at, self.optimizer, self.schedule)

    def restore(self) -> Moment | None:
        at = self.checkpoint.read()
        if at is not None:
            self.checkpoint.restore(self.optimizer, self.schedule, CPU)
        return at


def test_nothing_is_there_before_it_was_written(tmp_path: Path) -> None:
    assert Sitting(tmp_path / "c.pt").checkpoint.read() is None


def test_a_restored_training_goes_on_as_the_unbroken_one(tmp_path: Path) -> None:
    unbroken = Sitting(tmp_path / "c.pt")
    unbroken.step()
    unbroken.trained.history.append({"epoch": 0.0, "train_loss": 1.5})
    unbroken.trained.selected, unbroken.trained.seconds = {"epoch": 0.0}, 2.5
    unbroken.trained.last_weights = {"w": torch.ones(2)}
    unbroken.write(Moment(stage=1, epoch=4, step=9))
    unbroken.step()

    later = Sitting(tmp_path / "c.pt")
    assert later.restore() == Moment(stage=1, epoch=4, step=9)
    assert later.trained.history == [{"epoch": 0.0, "train_loss": 1.5}]
    assert (later.trained.selected, later.trained.seconds) == ({"epoch": 0.0}, 2.5)
    assert torch.equal(later.trained.last_weights["w"], torch.ones(2))
    later.step()  # weights, momentum and stream are those of then
    for mine, theirs in zip(later.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("content", [b"", b"no torch file", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pt: damaged, cannot go on from here .*; delete it"):
        Sitting(tmp_path / "c.pt").restore()


def test_a_file_without_a_moment_is_damaged(tmp_path: Path) -> None:
    torch.save({"stage": 0, "epoch": 1}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="damaged"):
        Sitting(tmp_path / "c.pt").restore()


def test_the_state_of_another_run_does_not_fit(tmp_path: Path) -> None:
    Sitting(tmp_path / "c.pt").write(Moment(stage=0, epoch=0, step=1))
    for other in (Sitting(tmp_path / "c.pt", width=5), Sitting(tmp_path / "c.pt", [RVSM(), HoldZeros()])):
        with pytest.raises(UserError, match="does not fit this run"):
            other.restore()
