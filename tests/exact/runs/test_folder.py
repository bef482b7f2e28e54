"""A run's folder: what training leaves is there as a whole or not at all, and is read back as what it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json, write_json
from robustbench_sparse.models.build import build_network
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.record import locate
from robustbench_sparse.runs.trained import Trained
from tests.helpers.small import small

CPU = torch.device("cpu")
IMAGES = {"channels": 1, "size": 8, "classes": 10}


def dataset() -> Dataset:
    x, y = torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10)
    return Dataset(name="t", label="t", train_x=x, train_y=y, test_x=x, test_y=y, classes=tuple("abcdefghij"))


def place(folder: Path, label: str = "r", **train: Any) -> RunFolder:
    plan = resolve(small(model={"name": "mlp", "hidden": [4]}, runs={label: {"train": train}}))
    return locate(folder, plan, plan.runs[0], 3, dataset())


def trained(fill: float = 0.5, last: float = 0.25) -> Trained:
    plan = resolve(small(model={"name": "mlp", "hidden": [4]}, runs={"r": {}}))
    network = build_network(plan.runs[0].model, [], **IMAGES, seed=3)
    weights = {k: torch.full_like(v, fill) for k, v in network.state_dict().items()}
    return Trained(
        weights=weights,
        selected={"stage": 0.0, "epoch": 1.0, "train_accuracy": 50.0, "channel_sparsity": float("nan")},
        last_weights={k: torch.full_like(v, last) for k, v in weights.items()},
        last={"stage": 0.0, "epoch": 3.0, "train_accuracy": 40.0},
        history=[{"epoch": 0.0, "train_loss": 2.0}],
        layers=[{"epoch": 0, "layer": "a"}],
        seconds=1.25,
    )


def stored(folder: Path, what: Trained | None = None, **train: Any) -> RunFolder:
    home = place(folder, **train)
    home.prepare(CPU)
    home.store(what or trained())
    return home


def test_what_training_left_is_read_back(tmp_path: Path) -> None:
    home = stored(tmp_path)
    about = home.training()
    assert about is not None
    assert (about["status"], about["train_seconds"]) == ("complete", 1.25)
    assert about["selected"] == {"stage": 0, "epoch": 1, "train_accuracy": 50, "channel_sparsity": None}
    assert about["last"]["epoch"] == 3
    network = home.network(**IMAGES)
    assert not network.training
    assert all((p == 0.5).all() for p in network.parameters())
    assert RunFolder.at(home.path) == dataclasses.replace(home, facts=read_json(home.path / names.RUN))


def test_nothing_counts_before_training_has_ended(tmp_path: Path) -> None:
    home = place(tmp_path)
    home.prepare(CPU)
    assert home.training() is None
    with pytest.raises(UserError, match="not trained to the end"):
        home.network(**IMAGES)


def test_a_diverged_training_has_no_network(tmp_path: Path) -> None:
    home = stored(tmp_path, dataclasses.replace(trained(), diverged="the loss became nan"))
    assert not home.weights.exists()
    with pytest.raises(UserError, match="diverged: the loss became nan"):
        home.network(**IMAGES)


def test_weights_changed_since_are_refused(tmp_path: Path) -> None:
    home = stored(tmp_path)
    home.weights.write_bytes(stored(tmp_path / "other", trained(fill=0.1)).weights.read_bytes())
    with pytest.raises(UserError, match="changed since it was trained"):
        home.network(**IMAGES)


def test_a_training_is_adopted_whole(tmp_path: Path) -> None:
    old = stored(tmp_path / "a")
    home = place(tmp_path / "b")
    assert home.path.name == old.path.name
    assert not home.adopt([tmp_path / "c"], CPU)
    assert home.adopt([tmp_path / "c", tmp_path / "a"], CPU)
    for name in (*names.TRAINED, names.ENVIRONMENT):
        assert (home.path / name).read_bytes() == (old.path / name).read_bytes()
    home.seals.check()
    assert home.network(**IMAGES)


def test_the_last_epoch_is_taken_over_from_the_row_that_chose_another(tmp_path: Path) -> None:
    chosen = stored(tmp_path, selection="best", select_after=1)
    home = place(tmp_path, selection="last")
    assert home.adopt_last(CPU)
    about = home.training()
    assert about is not None
    assert about["selected"] == {"stage": 0, "epoch": 3, "train_accuracy": 40}
    assert all((p == 0.25).all() for p in home.network(**IMAGES).parameters())
    assert all((p == 0.5).all() for p in chosen.network(**IMAGES).parameters())


def test_only_a_row_that_differs_in_its_choice_gives_its_last_epoch(tmp_path: Path) -> None:
    stored(tmp_path, selection="best", batch_size=32)
    assert not place(tmp_path, selection="last").adopt_last(CPU), "another batch size"
    stored(tmp_path / "c", selection="last")
    assert not place(tmp_path / "c", selection="best").adopt_last(CPU), "the chosen epoch is not known"


def test_where_the_last_epoch_was_chosen_there_is_no_second_file(tmp_path: Path) -> None:
    what = trained()
    home = stored(tmp_path, dataclasses.replace(what, selected=what.last, weights=what.last_weights))
    assert not (home.path / names.LAST).exists()
    assert place(tmp_path, selection="last").adopt_last(CPU)


def test_a_foreign_network_has_a_folder_without_a_recipe(tmp_path: Path) -> None:
    plan = resolve(small())
    facts = {"run": "theirs", "seed": 2, "model": "Net", "identity": "abc"}
    home = RunFolder.foreign(tmp_path / "theirs-s2-abc", plan, dataset(), facts)
    home.prepare(CPU)
    home.store_foreign()
    again = RunFolder.at(home.path)
    assert (again.label, again.seed, again.facts["record"]) == ("theirs", 2, {})
    assert (again.training() or {})["status"] == "complete"
    with pytest.raises(UserError):
        again.network(**IMAGES)


@pytest.mark.parametrize("facts", [{"run_id": "x"}, {"run_id": "x", "run": "a", "seed": "many"}])
def test_a_damaged_record_is_one_line(tmp_path: Path, facts: dict[str, Any]) -> None:
    from robustbench_sparse.runs.seals import seal

    write_json(tmp_path / names.RUN, facts)
    seal(tmp_path)
    with pytest.raises(UserError, match=r"run\.json: damaged"):
        RunFolder.at(tmp_path)


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run's folder"):
        RunFolder.at(tmp_path)
