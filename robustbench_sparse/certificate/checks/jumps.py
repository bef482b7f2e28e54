"""Check T2: do parts that jump, select or kill gradients mislead the white box?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, SampleRandom, Threat, check, is_stochastic
from attacks.iterate import Best, random_start, steepest
from attacks.losses import loss_towards
from attacks.random_search import PART, margins_of
from robustbench_sparse.certificate.checks.gradients import guilty_parts, slope_of
from robustbench_sparse.certificate.checks.outputs import smaller_of
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.probes.backward import bpda
from robustbench_sparse.certificate.probes.parts import suspicious
from robustbench_sparse.certificate.subject import Subject


@dataclass(frozen=True, kw_only=True)
class EvolutionStrategy(Attack):
    """PGD on the margin whose gradient is estimated from values alone.

    Salimans et al. 2017, https://arxiv.org/abs/1703.03864: the gradient of the margin, smoothed by N(0, sigma^2),
    is the mean of (f(x + sigma u) - f(x - sigma u)) / (2 sigma) * u, u ~ N(0, I).

    Args:
        target: see :class:`attacks.base.Attack`.
        samples: values per step, two for each u.
        steps: of length 2.5 * eps / steps.
        sigma: in pixel units; None means the ball's eps, per pixel with l2.
    """

    black_box: ClassVar[bool] = True
    samples: int = 100
    steps: int = 20
    sigma: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.samples >= 2, "samples", "an integer >= 2", self.samples)
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        check(self.sigma is None or self.sigma > 0, "sigma", "a number > 0 or null", self.sigma)

    @property
    def queries(self) -> int:
        """Answers of the network per image at most."""
        return self.steps * (2 * (self.samples // 2) + 1) + 1

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError for a ball without a radius."""
        check(math.isfinite(threat.eps), "eps", "a finite number", threat.eps)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        goal, towards = self.aim(model, x, y, random)
        best, loss, stops = Best(x), loss_towards("margin", towards), not is_stochastic(model)
        reach = threat.eps if threat.norm == "linf" else threat.eps / math.sqrt(x[0].numel())
        sigma = reach if self.sigma is None else self.sigma
        pairs = self.samples // 2
        point, rows = random_start(x, threat, random), torch.arange(len(x), device=x.device)
        for k in range(self.steps + 1):
            for part in torch.split(rows, max(1, PART // (2 * pairs + 1))):
                streams, at = random.subset(part), point[part]
                u = streams.normal(at[:, None].expand(-1, pairs, *at.shape[1:]))
                around = torch.cat([at[:, None], at[:, None] + sigma * u, at[:, None] - sigma * u], 1)
                if k == self.steps:
                    around = around[:, :1]
                f = margins_of(model, around.clamp(0, 1), goal[part], loss, streams)
                best.update(part, at, f[:, 0])
                if k < self.steps:
                    change = (f[:, 1 : pairs + 1] - f[:, pairs + 1 :]).nan_to_num()
                    slope = torch.einsum("bn,bn...->b...", change.to(u), u)
                    step = 2.5 * threat.eps / self.steps * steepest(slope, threat.norm)
                    point[part] = threat.project(at + step, x[part])
            if stops:
                rows = rows[~best.fooled[rows]]
            if len(rows) == 0:
                break
        return best.result()


def jumps_hide_nothing(s: Subject) -> Finding:
    """Parts without a gradient, or with one that says little."""
    rows = s.few
    if len(rows) == 0:
        return skipped("no image is classified right")
    slope = slope_of(s)
    jumps = suspicious(s.model, s.x[rows])
    guilty = guilty_parts(s, slope)
    if not (jumps or guilty or slope.bad):
        return skipped(
            "no part of the network jumps, selects or kills gradients, and the gradient fits the values"
        )
    white = _white(s)[rows]
    b = s.budget
    blind = EvolutionStrategy(samples=b.samples, steps=max(10, b.steps // 4))
    correct = s.attack(blind, "t2/es", rows=rows).correct
    measured: dict[str, Value] = {
        "parts": _first([*jumps, *guilty]),
        "white_acc": white.mean().item(),
        "es_acc": correct.mean().item(),
    }
    surrogate = bpda(s.model, s.x[rows], wrong=slope.wrong, also=jumps)
    if surrogate is not None:
        identity = s.strongest("t2/bpda", rows=rows, on=surrogate).correct
        measured["bpda_acc"] = identity.mean().item()
        correct = smaller_of(s, correct, identity)
    done = (
        f"PGD, {blind.steps} steps, with gradients estimated from {blind.samples} values each"
        + (", and the white box with these parts taken for the identity" if surrogate is not None else "")
        + f", on {len(rows)} images"
    )
    return ruled(not s.exceeds(white, smaller_of(s, white, correct)), done, measured)


JUMPS_HIDE_NOTHING = Check(
    id="T2",
    title="jumps and selections hide nothing",
    source="adaptive attack on k-winners-take-all: Tramer et al. 2020; BPDA: Athalye et al. 2018",
    rule="where a part of the network jumps, keeps some units at the expense of others or kills gradients, PGD "
    "with gradients estimated from values, and the white box with those parts taken for the identity, leave an "
    "accuracy at most tau below the white box's",
    meaning="The gradient at a point says little about the points beside it: the white box was misled.",
    advice="Report the adaptive attack's accuracy. More samples per step find more.",
    run=jumps_hide_nothing,
    refutes=True,
)


def _first(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))[:20]


def _white(s: Subject) -> Tensor:
    """The white box's verdicts (n,), or those of the row where no gradient attack runs."""
    if slope_of(s).error:
        return torch.minimum(s.clean, s.reported)
    return s.white.correct


CHECKS: tuple[Check, ...] = (JUMPS_HIDE_NOTHING,)
