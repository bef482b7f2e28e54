"""Class paths of before the package had rooms are answered with the new ones."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.moved import MOVED
from robustbench_sparse.foundation.errors import UserError
from tests.helpers.small import small


@pytest.mark.parametrize(("old", "new"), sorted(MOVED.items()))
def test_the_new_place_is_there_and_the_old_one_is_not(old: str, new: str) -> None:
    assert importlib.import_module(new).__name__ == new
    assert importlib.util.find_spec(old) is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("defenses.clip:CLIP", "defenses.robust.clip:CLIP"),
        ("defenses.rgsm:RGSM", "defenses.sparse.rgsm:RGSM"),
        ("robustbench_sparse.defenses.clip:CLIP", "defenses.robust.clip:CLIP"),
    ],
)
def test_an_old_class_path_names_the_key_and_the_new_path(entry: str, expected: str) -> None:
    with pytest.raises(UserError) as e:
        resolve(small(runs={"r": {"defenses": [{"name": entry}]}}))
    assert str(e.value) == f"config: runs.r.defenses.0.name: {entry!r}: has moved: expected {expected}"
    assert resolve(small(runs={"r": {"defenses": [{"name": expected}]}})).runs[0].defenses[0].name == expected


def test_an_optimizer_of_the_old_layout_too() -> None:
    given = "train.optimizer={name: '%s', lr: 0.1}"
    with pytest.raises(
        UserError, match=r"has moved: expected robustbench_sparse\.config\.optimizers:SGDSpec$"
    ):
        resolve(small(), changes=[given % "robustbench_sparse.optim:SGD"])
    new = "robustbench_sparse.config.optimizers:SGDSpec"
    assert resolve(small(), changes=[given % new]).runs[0].stages[0].config.optimizer["name"] == new
