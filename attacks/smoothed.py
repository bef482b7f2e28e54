"""APGD through softened or bypassed jumps: BPDA (Athalye, Carlini, Wagner 2018, https://arxiv.org/abs/1802.00420,
section 4.1) and secant slopes for modules that sparsify their input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.apgd import APGD
from attacks.base import Attack, SampleRandom, Threat, check, is_stochastic, logits_of
from attacks.iterate import Best, random_start
from attacks.losses import loss_towards
from attacks.sparsifying import OtherBackward, Slope, sparsifiers

# Backward passes through the modules that sparsify, in order, with the width of a softened one. The first is used for
# the targeted paths as well.
PASSES: tuple[tuple[Slope, float], ...] = (("softened", 0.1), ("softened", 0.3), ("identity", 0.0))


@dataclass(frozen=True, kw_only=True)
class Smoothed(Attack):
    """APGD on the network as it is, then with another backward pass through each module that sparsifies.

    Such a module, as k-winners-take-all or mean-centred sparsification, has outputs with exact zeros or repeated values
    that its input has not, and jumps; see :mod:`attacks.sparsifying`. Three paths follow, with slopes softened over two
    widths and with the module taken for the identity, and softened ones on the targeted DLR loss. The values stay the
    network's own, and so do the verdicts. Where no module sparsifies, as in a network of ReLUs, the first path is all
    there is.

    Args:
        target: see :class:`attacks.base.Attack`.
        reference: see :class:`attacks.base.Attack`.
        steps: gradient steps per path of APGD.
        restarts: paths per image and backward pass.
        loss: what is ascended: ``margin``, ``pma``, ``dlr`` (at least 3 classes) or ``ce``.
        eot: gradients and losses averaged per step when the network is random; 1 pass otherwise.
        targets: wrong classes that the targeted paths try, likeliest first; 0 leaves them out, and so do fewer than 4
            classes or a class to reach.
    """

    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "dlr", "margin", "pma"] = "margin"
    eot: int = 1
    targets: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "restarts", "eot"):
            check(getattr(self, name) >= 1, name, "an integer >= 1", getattr(self, name))
        losses = ("ce", "dlr", "margin", "pma")
        check(self.loss in losses, "loss", " or ".join(losses), self.loss)
        check(self.targets >= 0, "targets", "an integer >= 0", self.targets)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError for a ball without a radius."""
        check(math.isfinite(threat.eps), "eps", "a finite number", threat.eps)

    @property
    def passes(self) -> int:
        """Gradient passes per image at most: where modules sparsify."""
        return super().passes * (1 + len(PASSES) + self.targets)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, margin, noisy = Best(x), loss_towards("margin", towards), is_stochastic(model)
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            clean = logits_of(model, x, random, self.eot)
        best.update(rows, x, margin(clean, goal))
        plain = APGD(steps=self.steps, restarts=self.restarts, loss=self.loss, eot=self.eot)
        plain = replace(plain, target="given" if towards else "none")
        climbs = [(plain, *backward) for backward in PASSES]
        if self.targets and not towards and clean.shape[1] >= 4:
            climbs.append((replace(plain, loss="dlr_targeted", targets=self.targets), *PASSES[0]))

        def path(climb: APGD, network: nn.Module, rows: Tensor) -> None:
            """One path of the images that are not fooled yet, on the network or with another backward pass."""
            rows = rows if noisy else rows[~best.fooled[rows]]
            if len(rows) == 0:
                return
            streams = random.subset(rows)
            found = climb(network, x[rows], goal[rows], threat, streams)
            with torch.no_grad():
                best.update(rows, found, margin(logits_of(model, found, streams, self.eot), goal[rows]))

        path(plain, model, rows)
        rows = rows if noisy else rows[~best.fooled[rows]]
        if len(rows) == 0:
            return best.result()
        # Not at the images themselves: their pixels lie on a grid, and a staircase's on another or the same.
        streams = random.subset(rows)
        names = sparsifiers(model, random_start(x[rows], threat, streams), streams, self.eot)
        for group in dict.fromkeys(n for n in names if n):
            mine = rows[torch.tensor([n == group for n in names], device=rows.device)]
            for climb, slope, width in climbs:
                path(climb, OtherBackward(model, group, slope, width), mine)
        return best.result()
