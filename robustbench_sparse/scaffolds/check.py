"""The skeleton of a check of the certificate."""

from __future__ import annotations

from robustbench_sparse.scaffolds.skeleton import Skeleton

_CODE = '''"""A check of one's own: what it asks of a row's number, in a line."""

from __future__ import annotations

import torch

from robustbench_sparse.certificate.finding import Check, Finding, ruled, skipped
from robustbench_sparse.certificate.subject import Subject

STEP = 0.4 / 255  # less than half of what a byte can tell apart
ALLOWED = 0.02  # share of the images


def $name(s: Subject) -> Finding:
    """Noise that no file of 8 bits could hold turns next to no prediction."""
    if not len(s) or s.threat.eps == 0:
        return skipped("no images, or no ball")
    rows = torch.arange(len(s), device=s.x.device)
    random = s.random("$name")  # the images' streams of this name: the same numbers every time
    candidate = s.threat.project(s.x + STEP * random.normal(s.x).sign(), s.x)
    right = s.judged(candidate, "$name/judged")
    s.note(rows, candidate, right)  # what it breaks counts in the row's `worst`
    turned = (s.clean - right).clamp_min(0).mean().item()
    done = f"noise of 0.4/255 on each pixel of {len(s)} images"
    return ruled(turned <= ALLOWED, done, {"turned_share": turned, "clean_acc": s.clean.mean().item()})


CHECK = Check(
    id="X_$name"[:20],  # checks of one's own begin with X
    title="less than half a byte turns no prediction",
    source="our own",
    rule=f"of at most {100 * ALLOWED:g} % of the images",
    meaning="The network hears what its images do not say: attacks and their gradients are about that.",
    advice="Look for steps, hashes or high frequencies in front of the network.",
    run=$name,
    refutes=False,  # True where a failure shows the number to be wrong
)
'''

_TEST = '''"""What every check has to do, of $name: honest networks pass, broken ones fail, twice alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from $name import CHECK
from attacks import Threat
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.checks import own_checks
from robustbench_sparse.certificate.finding import Finding
from robustbench_sparse.certificate.subject import Subject


class Honest(nn.Module):
    """Class 1 where the mean of the pixels is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        z = 8 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


class Broken(nn.Module):
    """Class 1 where more pixels than not are odd in the fourth digit."""

    def forward(self, x: Tensor) -> Tensor:
        z = (1000 * x.flatten(1)).floor().remainder(2).mean(1) - 0.5
        return torch.stack([-z, z], 1)


def examined(network: nn.Module, eps: float = 0.1) -> tuple[Subject, Finding]:
    """The check on twenty-four images from dark to bright, whose labels are the network's own answers."""
    x = torch.linspace(0.1, 0.8, 24).view(-1, 1, 1, 1) + 0.1 * torch.rand(
        24, 1, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    y = network(x).argmax(1)
    s = Subject(
        network.eval(), x, y, torch.arange(24), Threat(eps=eps), classes=2, seed=0, budget=BUDGETS["quick"]
    )
    return s, CHECK.run(s)


def test_an_honest_network_passes() -> None:
    assert examined(Honest())[1].status == "passed"


def test_a_broken_one_fails_and_what_is_broken_counts() -> None:
    s, finding = examined(Broken())
    assert finding.status == "failed"
    assert bool((s.found.correct < 0.5).any())


def test_twice_the_same() -> None:
    assert examined(Broken())[1].record() == examined(Broken())[1].record()


def test_without_a_ball_it_does_not_apply() -> None:
    assert examined(Honest(), eps=0.0)[1].status == "skipped"


def test_a_config_can_name_it() -> None:
    assert [*own_checks(["$name:CHECK"]).values()] == [CHECK]
'''

_CONFIG = """evaluation:
  certificate: quick
  checks: ["$name:CHECK"]
"""

CHECK = Skeleton(code=_CODE, test=_TEST, config=_CONFIG)
