"""Whether a table only grows, and what a trial's folder is called."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from robustbench_sparse.config.load import resolve
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.runs.manifest import table_of
from robustbench_sparse.runs.variants import difference, named, variant_name

RAW: dict[str, Any] = {
    "name": "b",
    "data": "digits",
    "attacks": {"fgsm": "fgsm"},
    "seeds": [0],
    "model": {"name": "mlp"},
    "train": {"epochs": 1, "selection": "last"},
    "runs": {"a": {}, "c": {"train": {"epochs": 2}}},
}


def table(*changes: str) -> dict[str, Any]:
    return table_of(resolve(copy.deepcopy(RAW), changes=changes))


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("attacks.pgd=pgd",),
        ("shifts.noise=gaussian_noise",),
        ("seeds=[0, 1]",),
        ("runs.d={}",),
        ("threads=2",),
        ("evaluation.certificate=quick",),
    ],
)
def test_a_table_may_grow(changes: tuple[str, ...]) -> None:
    assert difference(table(), table(*changes)) == ""


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ("attacks.fgsm.target=next", "attacks.fgsm.target: 'none' there, 'next' here"),
        ("threat.eps=0.2", "threat.eps: 0.0313725"),
        ("evaluation.limit=9", "evaluation.limit: None there, 9 here"),
        ("evaluation.draws=9", "evaluation.draws"),
        ("train_limit=100", "train_limit"),
        ("seeds=[1]", "seeds: [0] there, [1] here"),
        ("runs.c.train.epochs=3", "runs.c.stages.0.epochs: 2 there, 3 here"),
        ("data.name=digits", ""),
    ],
)
def test_what_changes_cells_is_named(change: str, path: str) -> None:
    found = difference(table(), table(change))
    assert found.startswith(path)
    assert bool(found) == bool(path)


def test_a_row_or_an_attack_that_is_gone_is_a_change() -> None:
    assert difference(table("attacks.pgd=pgd"), table()) == "attacks.pgd: there, not here"
    assert difference(table("runs.d={}"), table()) == "runs.d: there, not here"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (["evaluation.limit=50"], "limit=50"),
        (["seeds=[0,1,2]"], "seeds=0,1,2"),
        (
            ["train.epochs=2", "evaluation.limit=9", "evaluation.certificate=quick"],
            "train.epochs=2,evaluation.limit=9",
        ),
    ],
)
def test_names_of_trials(changes: list[str], name: str) -> None:
    assert variant_name(changes) == name


def test_different_changes_have_different_names() -> None:
    long = "x" * 200
    changes = [["a=b c"], ["a=b-c"], ["a=b/c"], ["a=../.."], [f"a={long}"], [f"a={long}y"]]
    names = [variant_name(change) for change in changes]
    assert len(set(names)) == len(names)
    assert all(len(name) < 100 and "/" not in name for name in names)


def folder(*changes: str, variant: str | None = None) -> str:
    base = resolve(copy.deepcopy(RAW))
    plan = resolve(copy.deepcopy(RAW), changes=changes)
    return named(plan, base, changes, variant).config.name


def test_where_a_changed_config_goes() -> None:
    assert folder() == "b"
    assert folder("threads=3") == "b"
    assert folder("train.epochs=1") == "b", "as it was"
    assert folder("train.epochs=5") == "b@train.epochs=5"
    assert folder("train.epochs=5", variant="mine") == "b@mine"
    assert folder("name=other", "train.epochs=5") == "other"
    assert folder("name=b", "train.epochs=5") == "b@name=b,train.epochs=5", (
        "the benchmark's own name is no other one"
    )
    with pytest.raises(UserError, match="--variant: expected letters"):
        folder("train.epochs=5", variant="../x")
    assert not Path("b").exists()
