"""Pruned, then trained from scratch: what is left is a fresh network's, what is gone stays gone."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import Defense, L1FilterPrune, NetworkSlimming
from defenses.base import Log, Step
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plugins import settings_of
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.foundation.streams import Streams
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.models.build import build_network
from robustbench_sparse.models.preact_resnet import PreActResNet
from robustbench_sparse.models.vgg16 import VGG16
from robustbench_sparse.training.trainer import Trainer
from tests.helpers.pruning_steps import lived, step_of, train
from tests.helpers.small import small

SPECS: list[ModelSpec] = [PreActResNet(depth=8, widths=(4, 4, 6)), VGG16(width=4)]
BOTH: list[Defense] = [
    L1FilterPrune(sparsity=40.0, reinitialise=True),
    NetworkSlimming(sparsity=40.0, reinitialise=True),
]
CASES = pytest.mark.parametrize("defense", BOTH, ids=lambda d: type(d).__name__)


def fresh_of(spec: ModelSpec, generator: torch.Generator) -> nn.Module:
    seed = int(torch.randint(2**62, (), generator=generator))
    return build_network(spec, [], 3, 16, 10, seed)


def begun(defense: Defense, spec: ModelSpec, stream: int = 0) -> tuple[Step, Defense]:
    """A network with a life behind it, and the defense at the start of its stage."""
    defense = dataclasses.replace(defense)
    s = step_of(lived(spec))
    s.generator = torch.Generator().manual_seed(stream)
    s.fresh = lambda generator: fresh_of(spec, generator)
    defense.begin(s)
    return s, defense


@CASES
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.key)
def test_the_trained_weights_choose_and_a_fresh_network_fills(defense: Defense, spec: ModelSpec) -> None:
    s, reinitialised = begun(defense, spec)
    kept = reinitialised.memory["kept"]
    _, retrained = begun(dataclasses.replace(defense, reinitialise=False), spec)  # type: ignore[call-arg]
    assert kept.keys() == retrained.memory["kept"].keys()
    assert all(torch.equal(kept[name], mask) for name, mask in retrained.memory["kept"].items())
    new = fresh_of(spec, torch.Generator().manual_seed(0)).state_dict()
    old = lived(spec).state_dict()
    for name, value in s.model.state_dict().items():
        assert torch.equal(value, new[name] * kept[name] if name in kept else new[name])
        assert value.ndim == 0 or name.endswith("num_batches_tracked") or not torch.equal(value, old[name])
    assert any(not mask.all() for mask in kept.values())


@CASES
def test_it_is_drawn_from_the_defenses_own_stream(defense: Defense) -> None:
    state = torch.get_rng_state()
    (a, _), (b, _), (c, _) = (begun(defense, SPECS[1], stream) for stream in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    w, same, other = (s.model.state_dict() for s in (a, b, c))
    assert all(torch.equal(w[k], same[k]) for k in w)
    assert not torch.equal(w["features.0.weight"], other["features.0.weight"])


@CASES
def test_zeros_stay_while_it_trains_from_scratch(defense: Defense) -> None:
    s, defense = begun(defense, SPECS[0])
    kept = defense.memory["kept"]
    losses = train(defense, s, torch.optim.SGD(s.model.parameters(), lr=0.05, momentum=0.9), 15)
    assert losses[-1] < losses[0]
    own = dict(defense.deploy(s.model).named_parameters())
    assert all(own[name][~mask].count_nonzero() == 0 for name, mask in kept.items())


@CASES
def test_it_is_in_no_record_unless_it_is_asked_for(defense: Defense) -> None:
    """Runs that were trained before there was such a setting keep their ids."""
    assert "reinitialise" not in settings_of(type(defense)())
    assert settings_of(defense)["reinitialise"] is True


def test_what_cannot_be_meant_is_refused() -> None:
    for cls in (L1FilterPrune, NetworkSlimming):
        with pytest.raises(ValueError, match=r"^reinitialise: expected false, or a sparsity > 0"):
            cls(reinitialise=True)
    s = step_of(lived(SPECS[1]))
    with pytest.raises(ValueError, match=r"^reinitialise: expected a loop"):
        L1FilterPrune(sparsity=40.0, reinitialise=True).begin(s)


# In the loop ------------------------------------------------------------------------------------------------

STARTS: list[dict[str, Tensor]] = []
ENDS: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Watches(Defense):
    """Remembers the network at the start of the stage; stops the program at an epoch's end."""

    stop: int = 0

    def begin(self, s: Step) -> None:
        STARTS.append(copy.deepcopy(s.model.state_dict()))

    def end_epoch(self, s: Step) -> Log:
        ENDS.append(s.epoch)
        if len(ENDS) == self.stop:
            raise KeyboardInterrupt
        return {}


def trainer(folder: Path, stop: int = 0) -> Trainer:
    raw: dict[str, Any] = small(model={"name": "mlp", "hidden": [12, 8]}, train_limit=128)
    raw["train"] = {"batch_size": 64, "selection": "last", "stages": [{"epochs": 1}, {"epochs": 2}]}
    pruning = {"name": "l1_filter_prune", "sparsity": 50, "linear": True, "reinitialise": True, "stages": [1]}
    watching = {"name": f"{__name__}:Watches", "stop": stop, "stages": [1]}
    raw["runs"] = {"r": {"defenses": [pruning, watching]}}
    plan = resolve(raw)
    data = plan.prepare(Digits().load(None, None), torch.device("cpu"))
    return Trainer(plan.runs[0], data, plan.threat, 3, folder / "checkpoint.pt", Silent())


def test_a_stage_starts_from_the_networks_own_initialisation(tmp_path: Path) -> None:
    STARTS.clear()
    loop = trainer(tmp_path)
    loop.train()
    stream = Streams(3).get("defense/l1_filter_prune/0")
    seed = int(torch.randint(2**62, (), generator=stream))
    new = build_network(loop.run.model, [], 1, 8, 10, seed).state_dict()
    kept = loop.defenses[0].memory["kept"]
    (start,) = STARTS
    for name, value in start.items():
        assert torch.equal(value, new[name] * kept[name] if name in kept else new[name])
    rows = [(~kept[f"{layer}.weight"]).all(1).sum().item() for layer in _hidden(kept)]
    assert rows == [6, 4]


def _hidden(kept: dict[str, Tensor]) -> list[str]:
    return [name.removesuffix(".bias") for name in kept if name.endswith(".bias")]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_killed_training_ends_as_an_unbroken_one(tmp_path: Path, stop: int) -> None:
    ENDS.clear()
    whole = trainer(tmp_path / "whole").train()
    ENDS.clear()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "killed", stop).train()
    again = trainer(tmp_path / "killed").train()
    assert len(again.history) == 3
    assert whole.weights.keys() == again.weights.keys()
    assert all(torch.equal(w, again.weights[name]) for name, w in whole.weights.items())
