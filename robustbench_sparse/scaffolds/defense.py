"""The skeleton of a defense."""

from __future__ import annotations

from robustbench_sparse.scaffolds.skeleton import Skeleton

_CODE = '''"""A defense of one's own: say here in a line what it does, and where it is from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import check
from defenses import Defense, Log, Step


@dataclass(frozen=True, kw_only=True)
class $Name(Defense):
    """Noise on the training images. A field is a key of the config; its default switches the effect off.

    Args:
        sigma: deviation of the noise in units of the pixel range, finite and >= 0.
    """

    sigma: float = 0.0

    def __post_init__(self) -> None:
        check(0 <= self.sigma < math.inf, "sigma", "a finite number >= 0", self.sigma)

    def perturb(self, s: Step) -> Tensor:
        """The images to train on. All that is random is drawn from ``s.generator``, so that a run can be repeated."""
        if self.sigma == 0:
            return s.x
        noise = torch.randn(s.x.shape, generator=s.generator).to(s.x)
        return (s.x + self.sigma * noise).clamp(0, 1)

    # What is kept between steps lies in ``self.memory``: it is saved, and comes back after a kill. Further hooks, all
    # of them optional: wrap begin before_forward criterion penalty after_backward before_step after_step deploy.

    def end_epoch(self, s: Step) -> Log:
        """Numbers for the history of the run."""
        return {"sigma": self.sigma}
'''

_TEST = '''"""What every defense has to do, of $name."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from $name import $Name
from attacks import Threat
from defenses import Step
from robustbench_sparse import run_benchmark


def step() -> Step:
    """A minibatch as the training loop hands it over."""
    torch.manual_seed(0)
    x = torch.rand(6, 1, 8, 8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return Step(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        threat=Threat(eps=0.1),
        generator=torch.Generator().manual_seed(0),
        images=lambda split, count, generator: x[:count],
        x=x,
        y=torch.arange(6),
    )


def test_by_default_nothing_happens() -> None:
    s = step()
    before = s.x.clone()
    assert torch.equal($Name().perturb(s), before)
    assert $Name().penalty(s) is None
    assert $Name().criterion(s) is None


def test_the_same_generator_gives_the_same_images_in_the_box() -> None:
    first, second = ($Name(sigma=0.3).perturb(step()) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, step().x)
    assert first.min() >= 0 and first.max() <= 1


def test_its_state_comes_back() -> None:
    one, other = $Name(sigma=0.1), $Name(sigma=0.1)
    one.memory["n"] = torch.ones(2)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert torch.equal(other.memory["n"], one.memory["n"])


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="sigma: expected a finite number >= 0"):
        $Name(sigma=-1.0)


def test_a_benchmark_trains_with_it(tmp_path: Path) -> None:
    config = {
        "name": "tried",
        "data": "digits",
        "threat": {"eps": 0.1},
        "attacks": {"fgsm": "fgsm"},
        "evaluation": {"limit": 20},
        "model": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 1, "selection": "last"},
        "runs": {"mine": {"defenses": [{"name": "$name:$Name", "sigma": 0.1}]}},
    }
    table = run_benchmark(config, out=tmp_path, jobs=1)
    assert table["status"].tolist() == ["ok"]
    assert table["defenses"].tolist() == ["$name:$Name(sigma=0.1)"]
'''

_CONFIG = """runs:
  $name:
    defenses: [{name: "$name:$Name", sigma: 0.1}]
"""

DEFENSE = Skeleton(code=_CODE, test=_TEST, config=_CONFIG)
