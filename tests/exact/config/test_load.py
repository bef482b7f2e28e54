"""A benchmark file is checked to the last key before anything trains."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from robustbench_sparse.config.load import apply_set, load, merge, resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.foundation.errors import UserError

FILE = """\
name: small
source: a table
data: digits
validation: 100
threat: {norm: linf, eps: 8/255}
attacks:
  one: fgsm
  many:
    name: pgd
    steps: 7
    threat: {norm: l2, eps: 5e-1}
model: {name: preact_resnet, depth: 8}
train:
  epochs: 3
  optimizer: {name: sgd, lr: 1e-1, momentum: 0.9}
runs:
  natural:
  robust:
    defenses: [{name: pgd_at, steps: 2}]
    train: {batch_size: 32, optimizer: {lr: 0.2}}
  adam:
    model: lenet
    train:
      optimizer: {name: adam}
      stages: [{}, {epochs: 1, selection: last}]
    defenses: [{name: pgd_at, stages: [1]}]
published:
  values: {robust: {clean: 90, many: 50.5}}
"""

RAW: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "validation": 100,
    "attacks": {"one": "fgsm"},
    "model": {"name": "preact_resnet", "depth": 8},
    "train": {"epochs": 3},
    "runs": {"a": {}},
}


def with_(**keys: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RAW), **keys}


def refusal(raw: Any, *changes: str) -> str:
    with pytest.raises(UserError) as e:
        resolve(raw, changes=changes)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    return load(path)


def test_the_whole_file_arrives(plan: Plan) -> None:
    assert plan.config.name == "small"
    assert plan.dataset_name == "digits"
    assert (plan.threat.norm, plan.threat.eps) == ("linf", 8 / 255)
    one, many = plan.attacks
    assert (one.label, one.name, one.threat) == ("one", "fgsm", plan.threat)
    assert (many.label, many.name, many.record()["steps"]) == ("many", "pgd", 7)
    assert (many.threat.norm, many.threat.eps) == ("l2", 0.5)
    assert plan.published == {"robust": {"clean": 90.0, "many": 50.5}}


def test_runs_differ_from_the_defaults_only_where_they_say_so(plan: Plan) -> None:
    natural, robust, adam = plan.runs
    assert [r.label for r in plan.runs] == ["natural", "robust", "adam"]
    assert natural.defenses == []
    stage = natural.stages[0].record()
    assert (stage["epochs"], stage["batch_size"], stage["selection"]) == (3, 128, "best")
    assert stage["optimizer"] == {
        "name": "sgd",
        "lr": 0.1,
        "weight_decay": 0.0,
        "momentum": 0.9,
        "nesterov": False,
    }
    assert robust.stages[0].record()["optimizer"]["lr"] == 0.2
    assert robust.stages[0].record()["optimizer"]["momentum"] == 0.9
    assert robust.stages[0].config.batch_size == 32
    assert robust.defenses[0].record()["steps"] == 2
    # Another optimizer starts from its own defaults, another model from its own.
    assert "momentum" not in adam.stages[0].record()["optimizer"]
    assert adam.stages[0].record()["optimizer"]["lr"] == 1e-3
    assert adam.model_name == "lenet"
    assert [s.config.epochs for s in adam.stages] == [3, 1]
    assert [s.config.selection for s in adam.stages] == ["best", "last"]
    assert [adam.defenses[0].acts_in(i) for i in (0, 1)] == [False, True]


def test_every_build_of_a_defense_is_a_new_one(plan: Plan) -> None:
    defense = plan.runs[1].defenses[0]
    assert defense.build() == defense.build()
    assert defense.build().memory is not defense.build().memory


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("eps: 8/255", "eps: -1", 5, "threat.eps: expected a number >= 0.0, got -1"),
        ("norm: linf", "norm: l1", 5, "threat.norm: expected 'linf' or 'l2', got 'l1'"),
        ("steps: 7", "steps: 7.5", 10, "attacks.many.steps: expected a whole number, got 7.5"),
        (
            "steps: 7",
            "step: 7",
            10,
            "attacks.many.step: unknown setting of attack 'pgd' (did you mean 'steps'",
        ),
        ("name: pgd\n", "name: pdg\n", 9, "attacks.many.name: unknown attack 'pdg' (did you mean 'pgd'"),
        ("eps: 5e-1", "ep: 5e-1", 11, "attacks.many.threat.ep: unknown key (did you mean 'eps'?)"),
        ("depth: 8", "depth: x", 12, "model.depth: expected a whole number, got 'x'"),
        ("epochs: 3", "epochs: 0", 14, "train.epochs: expected a number > 0, got 0"),
        ("epochs: 3", "epoch: 3", 14, "train.epoch: unknown key (did you mean 'epochs'?)"),
        ("lr: 1e-1", "lr: 0", 15, "train.optimizer.lr: expected a number > 0, got 0.0"),
        (
            "train: {batch_size",
            "trian: {batch_size",
            20,
            "runs.robust.trian: unknown key (did you mean 'train'?)",
        ),
        ("steps: 2", "stepz: 2", 19, "runs.robust.defenses.0.stepz: unknown setting of defense 'pgd_at'"),
        ("batch_size: 32", "batch_size: 1.5", 20, "runs.robust.train.batch_size: expected a whole number"),
        ("selection: last", "selection: lst", 25, "runs.adam.train.stages.1.selection: expected 'best',"),
        ("stages: [1]", "stages: [2]", 26, "runs.adam.defenses.0.stages: expected a list of numbers below 2"),
        ("robust: {clean", "robst: {clean", 28, "published.values.robst: no run of this name (did you mean"),
        ("clean: 90", "claen: 90", 28, "published.values.robust.claen: no column of this name (did you mean"),
        ("source: a table", "validation: 3", 4, "not valid YAML: the key 'validation' is given twice"),
    ],
)
def test_errors_name_file_line_key_and_expectation(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    path = tmp_path / "small.yaml"
    assert FILE.count(old) == 1
    path.write_text(FILE.replace(old, new))
    with pytest.raises(UserError) as e:
        load(path)
    assert str(e.value).startswith(f"{path}:{line}: {message}")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([1], "config: expected a mapping of keys, got [1]"),
        (None, "config: expected a mapping of keys, got None"),
        (with_(name="a/b"), "config: name: expected a text that matches"),
        (with_(data=5), "config: data: expected a name or a mapping, got 5"),
        (with_(data={}), "config: data: expected `name:` with one of"),
        (with_(threat=5), "config: threat: expected a mapping, got 5"),
        (with_(threat={"norm": "l2"}), "config: threat: expected the radius eps, too, for the norm l2"),
        (with_(threat={"eps": math.nan}), "config: threat.eps: expected a number >= 0.0, got nan"),
        (with_(threat={"eps": True}), "config: threat.eps: expected a number, got True"),
        (with_(attacks=["fgsm"]), "config: attacks: expected a mapping, got ['fgsm']"),
        (with_(attacks={"a": None}), "config: attacks.a: expected a name or a mapping, got None"),
        (with_(attacks={"a": {"name": "pgd", "threat": 5}}), "config: attacks.a.threat: expected a mapping"),
        (
            with_(attacks={"a": {"name": "pgd", "target": "given"}}),
            "config: attacks.a.target: expected a rule that chooses the class",
        ),
        (with_(seeds=[]), "config: seeds: expected at least 1, got []"),
        (with_(seeds=[1, 1]), "config: seeds: expected different whole numbers >= 0, got [1, 1]"),
        (with_(seeds=[-1]), "config: seeds: expected different whole numbers >= 0, got [-1]"),
        (with_(seeds=[True]), "config: seeds.0: expected a whole number, got True"),
        (with_(evaluation={"limit": 0}), "config: evaluation.limit: expected a number > 0, got 0"),
        (with_(runs={}), "config: runs: expected at least 1, got {}"),
        (with_(runs={"a": 5}), "config: runs.a: expected a mapping, got 5"),
        (with_(runs={"a/b": {}}), "config: runs.a/b: expected a label of"),
        (with_(runs={"-a": {}}), "config: runs.-a: expected a label of"),
        (with_(runs={"a": {"defenses": "pgd_at"}}), "config: runs.a.defenses: expected a list, got 'pgd_at'"),
        (
            with_(runs={"a": {"defenses": [5]}}),
            "config: runs.a.defenses.0: expected a name or a mapping, got 5",
        ),
        (
            with_(runs={"a": {"train": {"stages": 5}}}),
            "config: runs.a.train.stages: expected a list of stages",
        ),
        (
            with_(runs={"a": {"train": {"stages": []}}}),
            "config: runs.a.train.stages: expected a list of stages",
        ),
        (with_(model=None), "config: runs.a: the key 'model' is missing, here and at the top"),
        (with_(train={}), "config: train: the key 'epochs' is missing"),
        (with_(validation=0), "config: validation: selection 'best' needs a validation part"),
        (
            with_(train={"epochs": 3, "select_after": 3}),
            "config: train.select_after: expected less than epochs = 3, got 3",
        ),
        (
            with_(runs={"a": {"defenses": ["pgd_at", "pgd_at"]}}),
            "config: runs.a.defenses: at most one defense may replace the images",
        ),
        (
            with_(runs={"a": {"defenses": ["trades", "mart"]}}),
            "config: runs.a.defenses: at most one defense may replace the images, got ['trades', 'mart']",
        ),
        (
            with_(runs={"a": {"defenses": ["mart", "label_smoothing"]}}),
            "config: runs.a.defenses: at most one defense may replace the task's loss, "
            "got ['mart', 'label_smoothing']",
        ),
        (
            with_(runs={"a": {"defenses": ["awp", "ema"]}}),
            "config: runs.a.defenses: awp needs a defense beside it that attacks the training images, "
            "got ['awp', 'ema']",
        ),
        (
            with_(runs={"a": {"defenses": ["pgd_at", {"name": "awp", "gamma": -0.1}]}}),
            "config: runs.a.defenses.1.gamma: expected a finite number >= 0, got -0.1",
        ),
        (
            with_(runs={"a": {"defenses": [{"name": "ema", "decay": 1.0}]}}),
            "config: runs.a.defenses.0.decay: expected a number in [0, 1), got 1.0",
        ),
        (
            with_(runs={"a": {"defenses": [{"name": "trades", "beta": -1.0}]}}),
            "config: runs.a.defenses.0.beta: expected a finite number >= 0, got -1.0",
        ),
        (with_(published={"file": "nope.csv"}), "config: published.file: nope.csv cannot be read as CSV"),
        (
            with_(published={"values": {"a": {"clean": "x"}}}),
            "config: published.values.a.clean: expected a number",
        ),
        (with_(nonsense=1), "config: nonsense: unknown key; there are: name, source"),
    ],
)
def test_what_does_not_fit_is_one_line(raw: Any, message: str) -> None:
    assert refusal(raw).startswith(message)


@pytest.mark.parametrize(
    "label",
    [
        *("clean", "worst", "run", "seed", "n", "status", "commit", "macs", "row_sparsity", "train_seconds"),
        *("pgd_lo", "pgd_hi", "pgd_mean", "pgd_std", "published_x", "", "a b", "a/b", ".a", "../a", "é"),
    ],
)
def test_attack_labels_that_would_be_mixed_up_with_columns_or_paths(label: str) -> None:
    assert refusal(with_(attacks={label: "fgsm"})).startswith(f"config: attacks.{label}: expected a label of")


def test_another_norm_does_not_inherit_the_radius() -> None:
    entry = {"name": "pgd", "threat": {"norm": "l2"}}
    assert "expected the radius eps" in refusal(with_(attacks={"a": entry}))
    same_norm = resolve(
        with_(threat={"eps": 0.1}, attacks={"a": {"name": "pgd", "threat": {"norm": "linf"}}})
    )
    assert same_norm.attacks[0].threat.eps == 0.1


def test_published_file_and_values_together(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("run,clean,one\na,90.5,\nb,80,40\n")
    raw = with_(
        runs={"a": {}, "b": {}},
        published={"file": "table.csv", "values": {"b": {"clean": 81.0, "worst": 3.0}}},
    )
    plan = resolve(raw, folder=tmp_path)
    assert plan.published == {"a": {"clean": 90.5}, "b": {"clean": 81.0, "one": 40.0, "worst": 3.0}}


@pytest.mark.parametrize(
    "text",
    [
        "clean\n1\n",
        "run,clean\na,ninety\n",
        "run,clean\nb,90\n",
        "run,claen\na,90\n",
        "",
        "run,clean\na,1\na,2\n",
    ],
)
def test_published_files_that_make_no_sense(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(UserError, match=r"^config: published\.file[.:]"):
        resolve(with_(published={"file": "table.csv"}), folder=tmp_path)


def test_settings_from_the_command_line() -> None:
    changes = [
        "train.epochs=5",
        "threat.eps=4/255",
        "runs.a.defenses=[pgd_at]",
        "attacks.one.eot=3",
        "seeds=[1, 2]",
    ]
    plan = resolve(with_(), changes=changes)
    assert plan.runs[0].stages[0].config.epochs == 5
    assert plan.threat.eps == 4 / 255
    assert plan.runs[0].defenses[0].name == "pgd_at"
    assert plan.attacks[0].record()["eot"] == 3
    assert plan.config.seeds == [1, 2]


def test_settings_from_the_command_line_leave_the_callers_config_alone() -> None:
    raw = with_()
    resolve(raw, changes=["train.epochs=5", "runs.a.train.batch_size=2", "evaluation.limit=3"])
    assert raw == RAW


def test_set_finds_its_place() -> None:
    raw = {"a": {"b": [1, {"c": 2}]}, "v1.0": {"x": 1}, "e": None, "p": "pgd"}
    assert apply_set(raw, "a.b.1.c=3")["a"] == {"b": [1, {"c": 3}]}
    assert apply_set(raw, "a.b.0=null")["a"] == {"b": [None, {"c": 2}]}
    assert apply_set(raw, "v1.0.x=2")["v1.0"] == {"x": 2}
    assert apply_set(raw, "e.f.g=x=y")["e"] == {"f": {"g": "x=y"}}
    assert apply_set(raw, "p.steps=3")["p"] == {"name": "pgd", "steps": 3}
    assert apply_set(raw, "n=")["n"] is None
    assert raw == {"a": {"b": [1, {"c": 2}]}, "v1.0": {"x": 1}, "e": None, "p": "pgd"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epochs", "--set train.epochs: expected key.path=value"),
        ("=3", "--set =3: expected key.path=value"),
        ("train..epochs=3", "--set train..epochs=3: expected key.path=value"),
        ("train.epochs.x=3", "--set train.epochs.x: expected a mapping above 'x', got 3"),
        ("train.epochs=[1", "--set value '[1':1: not valid YAML"),
        ("train.epochs=many", "--set train.epochs: expected a whole number, got 'many'"),
        ("attacks.one.epss=1", "--set attacks.one.epss: unknown setting of attack 'fgsm'"),
        ("trian.epochs=1", "config: trian: unknown key (did you mean 'train'"),
    ],
)
def test_settings_from_the_command_line_that_do_not_fit(change: str, message: str) -> None:
    assert refusal(with_(), change).startswith(message)


def test_an_unknown_key_from_the_command_line_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    with pytest.raises(UserError, match=r"^--set trian: unknown key"):
        load(path, ["trian.epochs=1"])


def test_list_numbers_from_the_command_line_have_to_exist() -> None:
    raw = with_(runs={"a": {"defenses": ["pgd_at"]}})
    assert resolve(raw, changes=["runs.a.defenses.0.steps=3"]).runs[0].defenses[0].record()["steps"] == 3
    assert refusal(raw, "runs.a.defenses.1.steps=3").endswith("expected a number below 1, got '1'")
    assert refusal(raw, "runs.a.defenses.x=3").endswith("expected a number below 1, got 'x'")


def test_merge() -> None:
    base = {"name": "sgd", "lr": 1, "deep": {"a": 1, "b": 2}}
    assert merge(base, {"lr": 2, "deep": {"b": 3}}) == {"name": "sgd", "lr": 2, "deep": {"a": 1, "b": 3}}
    assert merge(base, {"name": "sgd", "lr": 2})["deep"] == {"a": 1, "b": 2}
    assert merge(base, {"name": "adam"}) == {"name": "adam"}
    assert merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}
    assert base == {"name": "sgd", "lr": 1, "deep": {"a": 1, "b": 2}}


def test_records_are_the_same_for_the_same_meaning() -> None:
    """Ids hash the records: a default written out or left out must not make another run."""
    short = resolve(with_()).runs[0].record()
    written = with_(
        train={
            "epochs": 3,
            "batch_size": 128,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": "constant",
        }
    )
    assert resolve(written).runs[0].record() == short
    assert resolve(with_(train={"epochs": 4})).runs[0].record() != short
