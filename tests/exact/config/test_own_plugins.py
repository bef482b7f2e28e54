"""Plug-ins of one's own: found beside the config, networks without settings written for them, regularisers."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from robustbench_sparse.config import plugins
from robustbench_sparse.config.load import load, resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.plugins import from_file, settings_of
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.runs.provenance import code_of
from tests.helpers.small import small

NETS = """
import torch
from torch import nn


class Wide(nn.Module):
    'A layer as wide as one likes.'

    def __init__(self, channels: int, size: int, num_classes: int, width: int = 4, steps: list[int] = [1]) -> None:
        super().__init__()
        assert steps == list(steps)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, width), nn.Linear(width, num_classes))

    def forward(self, x):
        return self.body(x)


def plain(classes, bias=True):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes, bias=bias))


def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


def none(classes):
    return classes


def fails(classes):
    raise RuntimeError("no")


def odd(mean):
    return None


NUMBER = 3
"""

REGULARISER = """
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Squared:
    scale: float = 1.0

    def value(self, w):
        return self.scale * (w**2).sum() / 2

    def prox(self, w, step):
        return w / (1 + step * self.scale)

    def subgrad(self, w):
        return self.scale * w


class Half:
    pass
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a config and its modules, which is not where the user is."""
    (tmp_path / "config").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "config" / "own_nets.py").write_text(NETS)
    (tmp_path / "config" / "own_regularisers.py").write_text(REGULARISER)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "config"
    for name in ("own_nets", "own_regularisers"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def plan(home: Path, **changes: Any) -> Plan:
    """What a config of that folder comes to."""
    raw = small(**{"runs": {"r": {}}, "model": {"name": "mlp"}, **changes})
    (home / "x.yaml").write_text(yaml.safe_dump(raw))
    return load(home / "x.yaml")


def refused(home: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        plan(home, **changes)
    return str(caught.value)


def test_a_class_of_modules_is_a_model(home: Path) -> None:
    run = plan(home, model={"name": "own_nets:Wide", "width": 7, "steps": [1, 2], "mean": [0.5]}).runs[0]
    network = run.model.build(1, 8, 10)
    assert network(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    assert [m.out_features for m in network.modules() if isinstance(m, torch.nn.Linear)] == [7, 10]
    assert type(network).__name__ == "Sequential"  # with the normalisation in front
    assert run.record()["model"] == {
        "name": "own_nets:Wide", "mean": (0.5,), "std": None, "width": 7, "steps": (1, 2)
    }  # fmt: skip
    assert plugins.describe(type(run.model)) == "A layer as wide as one likes."


def test_a_function_is_a_model(home: Path) -> None:
    run = plan(home, model={"name": "own_nets:plain", "bias": False}).runs[0]
    assert [name for name, _ in run.model.build(1, 8, 10).named_parameters()] == ["1.weight"]
    assert "own_nets:plain" in code_of(run.parts())


def test_other_processes_get_the_same_network(home: Path) -> None:
    spec = plan(home, model={"name": "own_nets:Wide", "width": 7}).runs[0].model
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_layers_that_learn_their_widths_have_them(home: Path) -> None:
    network = plan(home, model="own_nets:lazy").runs[0].model.build(2, 8, 10)
    assert [tuple(p.shape) for p in network.parameters()] == [(10, 128), (10,)]
    assert network.training


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"name": "own_nets:Wide", "widht": 3}, "widht: unknown setting of model"),
        ({"name": "own_nets:Wide", "width": "3"}, "width: expected a whole number, got '3'"),
        ({"name": "own_nets:NUMBER"}, "or what makes a torch.nn.Module"),
        ({"name": "own_nets:odd"}, "its parameter mean is a key of every model"),
        ({"name": "own_nets:plian"}, "did you mean 'plain'"),
    ],
)
def test_what_a_factory_does_not_take(home: Path, entry: dict[str, Any], expected: str) -> None:
    assert expected in refused(home, model=entry)


def test_a_factory_that_makes_none(home: Path) -> None:
    for name, expected in (
        ("none", "expected it to return a torch.nn.Module, got int"),
        ("fails", "RuntimeError: no"),
    ):
        spec = plan(home, model=f"own_nets:{name}").runs[0].model
        with pytest.raises(ValueError, match=expected):
            spec.build(1, 8, 10)


def test_what_names_a_run_names_the_source(home: Path) -> None:
    """An edited network or regulariser is another one, and is trained anew."""
    entry = {"name": "rvsm", "regulariser": {"name": "own_regularisers:Squared", "scale": 2.0}}
    config = {"model": "own_nets:plain", "runs": {"r": {"defenses": [entry]}}}
    before = code_of(plan(home, **config).runs[0].parts())
    assert set(before) == {"version", "own_nets:plain", "own_regularisers:Squared"}
    for name in ("own_nets", "own_regularisers"):
        path = home / f"{name}.py"
        path.write_text(path.read_text() + "# edited\n")
    after = code_of(plan(home, **config).runs[0].parts())
    assert all(before[name] != after[name] for name in before if name != "version")


def test_a_regulariser_of_ones_own_in_a_defense_and_an_optimizer(home: Path) -> None:
    entry = {"name": "own_regularisers:Squared", "scale": 3.0}
    run = plan(
        home,
        train={"epochs": 1, "optimizer": {"name": "proxsgd", "lr": 0.1, "lam": 1.0, "linear": entry}},
        runs={"r": {"defenses": [{"name": "lasso", "lam": 0.1, "linear": entry, "conv": None}]}},
    ).runs[0]
    lasso: Any = run.defenses[0].build()
    assert lasso.regularisers()["linear"].prox(torch.ones(2), 1.0).tolist() == [0.25, 0.25]
    assert settings_of(run.stages[0].optimizer)["linear"] == entry
    assert "own_regularisers:Squared" in code_of(run.parts())
    bad: dict[str, Any] = {"name": "lasso", "linear": "own_regularisers:Half"}
    assert "linear: own_regularisers:Half: expected a dataclass with value" in refused(
        home, runs={"r": {"defenses": [bad]}}
    )
    unknown: dict[str, Any] = {"name": "lasso", "linear": {"name": "own_regularisers:Squared", "sclae": 1}}
    assert "settings of own_regularisers:Squared (scale)" in refused(
        home, runs={"r": {"defenses": [unknown]}}
    )


def test_the_folder_of_the_config_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = home.parent / "elsewhere"
    (here / "own_nets.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.syspath_prepend(str(here))
    assert plan(home, model="own_nets:plain").runs[0].model.build(1, 8, 10)
    assert str(home) in plugins.places()


def test_two_modules_of_one_name_are_told_apart(home: Path) -> None:
    plan(home, model="own_nets:plain")
    other = home.parent / "other"
    other.mkdir()
    (other / "own_nets.py").write_text(NETS)
    assert "a module own_nets is loaded already" in refused(other, model="own_nets:plain")


def test_a_stored_file_imports_no_regulariser(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_TRUSTED", set())
    monkeypatch.syspath_prepend(str(home))
    raw = small(runs={"r": {"defenses": [{"name": "rvsm", "regulariser": "own_regularisers:Squared"}]}})
    with from_file(), pytest.raises(UserError, match="--trust-plugins own_regularisers"):
        resolve(raw)
    assert "own_regularisers" not in sys.modules
    assert resolve(raw).runs[0].defenses[0].build()
