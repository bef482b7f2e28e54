"""Networks kept on the way: which ones, that they change nothing, and that a kill takes none of them away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defenses.base import Defense, Step
from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.foundation.files import load_weights
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.training.trainer import Trainer
from tests.helpers.small import small

DIES: list[int] = []  # epochs in which the process is killed
SEEN: dict[int, dict[str, Tensor]] = {}  # the weights when an epoch begins


class Killed(BaseException):
    """The process ends here."""


@dataclass(frozen=True, kw_only=True)
class Watches(Defense):
    """Notes the weights that an epoch begins with, and dies in an epoch that is asked for."""

    def perturb(self, s: Step) -> Tensor:
        if s.epoch in DIES:
            raise Killed
        if s.step % s.steps_per_epoch == 0:
            SEEN[s.epoch] = {k: v.clone() for k, v in s.model.state_dict().items()}
        return s.x


def trainer(folder: Path, snapshots: list[int], **train: Any) -> Trainer:
    raw = small(model={"name": "mlp", "hidden": [4]}, train_limit=128)
    raw["train"] = {"epochs": 3, "batch_size": 64, "snapshots": snapshots, **train}
    raw["runs"] = {"r": {"defenses": [f"{__name__}:Watches"]}}
    plan = resolve(raw)
    data = plan.prepare(Digits().load(None, None), torch.device("cpu"))
    return Trainer(plan.runs[0], data, plan.threat, 0, folder / "checkpoint.pt", Silent())


def kept(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {path.stem: load_weights(path) for path in sorted((folder / "snapshots").glob("*"))}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


def test_they_are_the_networks_between_the_epochs(tmp_path: Path) -> None:
    SEEN.clear()
    trained = trainer(tmp_path, [0, 2, 3]).train()
    found = kept(tmp_path)
    assert list(found) == ["0-0", "0-2", "0-3"]
    assert trained.snapshots == [f"snapshots/{name}.safetensors" for name in found]
    assert same(found["0-0"], SEEN[0])
    assert same(found["0-2"], SEEN[2])
    assert not same(found["0-0"], found["0-2"])
    assert same(found["0-3"], trained.last_weights)


def test_they_change_no_number(tmp_path: Path) -> None:
    plain, with_them = trainer(tmp_path / "a", []).train(), trainer(tmp_path / "b", [0, 1, 2, 3]).train()
    assert plain.history == with_them.history
    assert same(plain.weights, with_them.weights)
    assert not (tmp_path / "a" / "snapshots").exists()


def test_stages_count_anew(tmp_path: Path) -> None:
    stages = {"stages": [{"epochs": 1, "snapshots": [1]}, {"epochs": 2, "snapshots": [0, 2]}]}
    trained = trainer(tmp_path, [], **stages).train()
    found = kept(tmp_path)
    assert list(found) == ["0-1", "1-0", "1-2"]
    assert same(found["0-1"], found["1-0"])
    assert same(found["1-2"], trained.last_weights)


def test_a_killed_training_has_all_of_them_in_the_end(tmp_path: Path) -> None:
    unbroken = trainer(tmp_path / "a", [0, 1, 3]).train()
    for epoch in (0, 1, 2):
        DIES[:] = [epoch]
        try:
            trainer(tmp_path / "b", [0, 1, 3]).train()
        except Killed:
            pass
        finally:
            DIES.clear()
    trained = trainer(tmp_path / "b", [0, 1, 3]).train()
    assert trained.snapshots == unbroken.snapshots
    first, second = kept(tmp_path / "a"), kept(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(same(first[name], second[name]) for name in first)


def test_a_checkpoint_of_before_there_were_snapshots_goes_on(tmp_path: Path) -> None:
    DIES[:] = [1]
    try:
        trainer(tmp_path, []).train()
    except Killed:
        pass
    finally:
        DIES.clear()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["snapshots"]
    torch.save(state, tmp_path / "checkpoint.pt")
    trained = trainer(tmp_path, [1, 3]).train()
    assert trained.snapshots == ["snapshots/0-3.safetensors"]  # the first epoch was over
