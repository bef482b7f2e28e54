"""The skeleton of an attack."""

from __future__ import annotations

from robustbench_sparse.scaffolds.skeleton import Skeleton

_CODE = '''"""An attack of one's own: say here in a line what it does, and where it is from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from attacks import Attack, SampleRandom, Threat
from attacks.base import check, input_gradient
from attacks.iterate import steepest
from attacks.losses import margin


@dataclass(frozen=True, kw_only=True)
class $Name(Attack):
    """Gradient steps on the margin, from a random start. A field is a key of the config, with its default.

    Args:
        target, reference: see ``attacks.Attack``.
        steps: gradient steps, >= 1.
    """

    steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Propose an image for each one: what fools, and by how much, is measured by the judge.

        All that is random is drawn from ``random``, in which every image has a stream of its own.
        """
        classes, towards = self.aim(model, x, y, random)
        sign = -1 if towards else 1
        point = threat.project(x + threat.eps * (2 * random.uniform(x) - 1), x)
        for _ in range(self.steps):
            gradient, _, _ = input_gradient(model, point, classes, margin, random)
            point = threat.project(point + sign * 2.5 * threat.eps / self.steps * steepest(gradient, threat.norm), x)
        return point
'''

_TEST = '''"""What every attack has to do, of $name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from $name import $Name
from attacks import SampleRandom, Threat

THREATS = [Threat(norm="linf", eps=0.1), Threat(norm="l2", eps=0.5)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4)).eval()


def images() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, network()(x).argmax(1)


def streams(indices: range = range(12)) -> SampleRandom:
    return SampleRandom.for_images(0, "test", list(indices))


@pytest.mark.parametrize("threat", THREATS)
def test_candidates_lie_in_the_ball_and_the_box(threat: Threat) -> None:
    x, y = images()
    before = x.clone()
    candidate = $Name()(network(), x, y, threat, streams())
    assert candidate.shape == x.shape
    assert torch.equal(x, before)
    assert candidate.min() >= 0 and candidate.max() <= 1
    assert bool((threat.size(candidate - x) <= threat.reach).all())


def test_without_a_radius_nothing_is_changed() -> None:
    x, y = images()
    assert torch.equal($Name()(network(), x, y, Threat(eps=0.0), streams()), x)


def test_the_same_streams_give_the_same_images() -> None:
    x, y = images()
    first, second = ($Name()(network(), x, y, THREATS[0], streams()) for _ in range(2))
    assert torch.equal(first, second)


def test_an_image_does_not_depend_on_its_batch() -> None:
    """Where this cannot hold, the class says ``batch_dependent = True``."""
    x, y = images()
    together = $Name()(network(), x, y, THREATS[0], streams())
    alone = $Name()(network(), x[3:5], y[3:5], THREATS[0], streams(range(3, 5)))
    assert torch.allclose(together[3:5], alone, atol=1e-5)


def test_it_fools_where_there_is_room() -> None:
    x, y = images()
    candidate = $Name()(network(), x, y, Threat(eps=0.4), streams())
    assert (network()(candidate).argmax(1) == y).float().mean() < 0.5


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="steps: expected an integer >= 1"):
        $Name(steps=0)
'''

_CONFIG = """attacks:
  $name: {name: "$name:$Name", steps: 20}
"""

ATTACK = Skeleton(code=_CODE, test=_TEST, config=_CONFIG)
