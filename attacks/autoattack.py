"""AutoAttack, the standard ensemble (Croce & Hein 2020, https://arxiv.org/abs/2003.01690), sample by sample."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacks.apgd import APGD
from attacks.base import Attack, SampleRandom, Threat, check, exact_of, is_stochastic, logits_of
from attacks.fab import FAB
from attacks.iterate import Best, questioned
from attacks.losses import loss_towards
from attacks.square import MANY, Square


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """APGD on the cross-entropy, APGD on the targeted DLR loss, targeted FAB and Square, one after another.

    On a network that is not random, an image leaves once it is fooled inside the ball, and a later attack sees only
    what the earlier ones left. On a random one every attack sees every image, and the candidate with the largest margin
    over ``eot`` fresh passes is returned.

    The targeted DLR loss needs four classes: with three, the untargeted one takes its place, with two the margin. With
    a class to reach, all four attacks try that class only, the second one by the margin.

    Args:
        target: see :class:`attacks.base.Attack`.
        reference: see :class:`attacks.base.Attack`.
        steps: gradient steps per path of APGD and FAB.
        targets: wrong classes that the targeted attacks try, likeliest first.
        restarts: paths per image (and class) of APGD.
        queries: answers per image that Square may ask for; 0 leaves it out.
        eot: passes averaged per gradient and query when the network is random; 1 pass otherwise.
    """

    steps: int = 100
    targets: int = 9
    restarts: int = 1
    queries: int = 5000
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "targets", "restarts", "eot"):
            check(getattr(self, name) >= 1, name, "an integer >= 1", getattr(self, name))
        check(self.queries == 0 or self.queries >= 4, "queries", "an integer >= 4, or 0", self.queries)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError for a ball without a radius."""
        check(math.isfinite(threat.eps), "eps", "a finite number", threat.eps)

    @property
    def passes(self) -> int:
        """Gradient passes per image at most, over all attacks that have gradients."""
        return sum(attack.passes for attack in self.attacks(4, self.target != "none"))

    def attacks(self, classes: int, towards: bool = False) -> list[Attack]:
        """The ensemble in order, for networks of so many classes; ``towards`` a given class, or away from the label."""
        ce = APGD(steps=self.steps, restarts=self.restarts, eot=self.eot)
        if towards or classes == 2:
            second = replace(ce, loss="margin")
        elif classes == 3:
            second = replace(ce, loss="dlr")
        else:
            second = replace(ce, loss="dlr_targeted", targets=self.targets)
        out: list[Attack] = [
            ce,
            second,
            FAB(steps=self.steps, targets=self.targets, within=True, eot=self.eot),
        ]
        if self.queries:
            out.append(Square(queries=self.queries, eot=self.eot))
        return [replace(attack, target="given") for attack in out] if towards else out

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image, inside the ball."""
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, margin, noisy = Best(x), loss_towards("margin", towards), is_stochastic(model)
        exact = None if noisy else exact_of(model)
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            clean = logits_of(model, x, random, self.eot)
        best.update(rows, x, margin(clean, goal))
        # Square is worth a compiled form for answers, and the others ask, too.
        asks = self.queries >= MANY and not noisy
        for attack in self.attacks(clean.shape[1], towards):
            if not noisy:
                rows = (~best.fooled).nonzero().flatten()
            if len(rows) == 0:
                break
            streams = random.subset(rows)
            with questioned(model) if asks else contextlib.nullcontext():
                found = threat.project(attack(model, x[rows], goal[rows], threat, streams), x[rows])
            with torch.no_grad():
                # A success on a stand-in that the network itself does not confirm is left to the next attack.
                logits = logits_of(model, found, streams, self.eot) if exact is None else exact(found)
            best.update(rows, found, margin(logits, goal[rows]))
        return best.result()
