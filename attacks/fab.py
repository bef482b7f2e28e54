"""FAB, fast adaptive boundary attack (Croce & Hein 2020, https://arxiv.org/abs/1907.02044), targeted version."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import (
    Attack,
    Loss,
    Norm,
    SampleRandom,
    Threat,
    check,
    input_gradient,
    is_stochastic,
    logits_of,
    per_image,
)
from attacks.iterate import Best, settled, steepest
from attacks.losses import lead, likeliest_wrong, loss_towards

BISECTIONS = 10


@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Smallest adversarial perturbation: projections onto the linearised decision boundary, kept near the image.

    Each step projects the current point and the clean image onto the hyperplane where the network, linearised at
    the current point, holds two classes for equal (exactly, inside [0, 1]), goes a little beyond both, and mixes
    them. A point that fools is drawn back towards the clean image. The paths go towards the likeliest wrong classes
    one after another; any wrong class counts. At the end a bisection between the clean image and the best point.

    The radius of the threat is not used, but for ``within`` and for random restarts, which start at distance
    min(u, eps) / 2, u the smallest norm found so far. Each image's candidate is the smallest perturbation found, inside
    the ball or not, and the clean image if there is none.

    Args:
        target: see :class:`attacks.base.Attack`; with a class to reach, ``targets`` is unused.
        reference: see :class:`attacks.base.Attack`.
        steps: projections per path, the paper's N_iter.
        restarts: paths per image and class; the first from the clean image, the others from random points.
        targets: number of wrong classes to try, likeliest first.
        alpha_max: largest weight of the clean image's projection, in [0, 1].
        eta: extrapolation beyond the hyperplane, >= 1.
        beta: where between the clean image (0) and a point that fools (1) the path goes on.
        within: on a network that is not random, an image tries no further class once its smallest perturbation lies in
            the threat's ball: enough for a verdict, not for a distance.
        eot: passes averaged per step when the network is random; 1 pass otherwise.
    """

    bounded: ClassVar[bool] = False
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    within: bool = False
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        check(self.restarts >= 1, "restarts", "an integer >= 1", self.restarts)
        check(self.targets >= 1, "targets", "an integer >= 1", self.targets)
        check(0 <= self.alpha_max <= 1, "alpha_max", "a number in [0, 1]", self.alpha_max)
        check(1 <= self.eta < math.inf, "eta", "a finite number >= 1", self.eta)
        check(0 < self.beta < 1, "beta", "a number between 0 and 1", self.beta)
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError where a restart would have no radius."""
        known = self.restarts == 1 or math.isfinite(threat.eps)
        check(known, "restarts", "1 where eps is infinite", self.restarts)

    @property
    def passes(self) -> int:
        """Gradient passes per image at most: each step but the first may take two."""
        paths = super().passes // self.steps * (self.targets if self.target == "none" else 1)
        return (2 * self.steps - 1) * paths

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """The smallest adversarial found for each image, (B, C, H, W)."""
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, rows = Best(x), torch.arange(len(x), device=x.device)
        with torch.no_grad():
            clean = logits_of(model, x, random, self.eot)
        _show(best, rows, x, x, loss_towards("margin", towards)(clean, goal), threat)
        if not is_stochastic(model):
            rows = (~best.fooled).nonzero().flatten()  # nothing is smaller than no perturbation
        for restart in range(self.restarts):
            for other in goal[None] if towards else likeliest_wrong(clean, y, self.targets).T:
                if self.within and not is_stochastic(model):
                    rows = rows[best.score[rows] < -threat.eps]
                if len(rows) == 0:
                    break
                clean_x, streams, start = x[rows], random.subset(rows), x[rows]
                if restart:
                    radius = (-best.score[rows]).clamp_max(threat.eps) / 2
                    start = _at_distance(clean_x, radius, threat.norm, streams)
                classes = torch.stack([goal, other], 1)[rows]
                self._descend(model, clean_x, start, classes, towards, threat, streams, best, rows)
        self._bisect(model, x, goal, towards, threat, random, best)
        return settled(model, x, best.result(), loss_towards("margin", towards), goal)

    def _descend(
        self,
        model: nn.Module,
        x: Tensor,
        x_adv: Tensor,
        classes: Tensor,
        towards: bool,
        threat: Threat,
        random: SampleRandom,
        best: Best,
        rows: Tensor,
    ) -> None:
        """One path per image from ``x_adv``; shows its points to ``best``, where ``rows`` numbers these images.

        ``classes`` (B, 2) holds the class to leave (or to reach, if ``towards``) and the one it is compared to.

        A step's gradient is needed where the path goes on: at the point that the last step led to, or nearer to the
        clean image where that one fools. Paths along the boundary fool at most of their steps: after a step that did,
        the next point is only asked, and the gradient taken once it is known where. On a random network each pass is
        another draw, and the first gradient is the verdict.
        """
        margin, goal = loss_towards("margin", towards), classes[:, 0]
        fooled = torch.zeros_like(rows, dtype=torch.bool)
        height: Loss = lambda z, c: margin(z, c[:, 0]) if towards else lead(z, c[:, 0], c[:, 1])  # noqa: E731
        for step in range(self.steps):
            ask = fooled.nonzero().flatten()
            if len(ask):
                with torch.no_grad():
                    gap = margin(logits_of(model, x_adv[ask], random.subset(ask), self.eot), goal[ask])
                _show(best, rows[ask], x[ask], x_adv[ask], gap, threat)
                fooled[ask] = gap > 0
                x_adv = self._nearer(x, x_adv, ask[gap > 0])
            w, value, logits = input_gradient(model, x_adv, classes, height, random, self.eot)
            if step:
                fools = margin(logits, goal)
                new = torch.ones_like(fooled).index_fill(0, ask, False)  # whose pass this is a verdict, too
                _show(best, rows[new], x[new], x_adv[new], fools[new], threat)
                back = (new & (fools > 0)).nonzero().flatten()
                if len(back):
                    x_adv = self._nearer(x, x_adv, back)
                    w[back], value[back], _ = input_gradient(
                        model, x_adv[back], classes[back], height, random.subset(back), self.eot
                    )
                    if not is_stochastic(model):
                        fooled[back] = True
            to_plane = project_hyperplane(x_adv, w, -value, threat.norm)
            # The same hyperplane, seen from the clean image.
            offset = (w * (x_adv - x)).flatten(1).sum(1) - value
            from_clean = project_hyperplane(x, w, offset, threat.norm)
            near, far = threat.size(to_plane), threat.size(from_clean)
            tiny = torch.finfo(x.dtype).tiny
            alpha = per_image((near / (near + far).clamp_min(tiny)).clamp_max(self.alpha_max), x)
            x_adv = (1 - alpha) * (x_adv + self.eta * to_plane) + alpha * (x + self.eta * from_clean)
            x_adv = x_adv.clamp(0, 1)
        with torch.no_grad():
            gap = margin(logits_of(model, x_adv, random, self.eot), goal)
        _show(best, rows, x, x_adv, gap, threat)

    def _nearer(self, x: Tensor, x_adv: Tensor, rows: Tensor) -> Tensor:
        """The points with some of them, ``rows``, drawn back towards the clean images."""
        x_adv = x_adv.clone()
        x_adv[rows] = x[rows] + self.beta * (x_adv[rows] - x[rows])
        return x_adv

    def _bisect(
        self,
        model: nn.Module,
        x: Tensor,
        goal: Tensor,
        towards: bool,
        threat: Threat,
        random: SampleRandom,
        best: Best,
    ) -> None:
        """The boundary between each clean image and its best point."""
        margin, rows = loss_towards("margin", towards), best.fooled.nonzero().flatten()
        if len(rows) == 0:
            return
        x, goal, random, found = x[rows], goal[rows], random.subset(rows), best.point[rows]
        low, high = x.new_zeros(len(x)), x.new_ones(len(x))  # fractions of the way that do not fool, and do
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            point = x + per_image(middle, x) * (found - x)
            with torch.no_grad():
                gap = margin(logits_of(model, point, random, self.eot), goal)
            _show(best, rows, x, point, gap, threat)
            low, high = torch.where(gap > 0, low, middle), torch.where(gap > 0, middle, high)


def project_hyperplane(x: Tensor, w: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """The smallest d with <w, d> = b and x + d in [0, 1]; exact.

    The optimum is d_i = sign(b w_i) min(t s_i, room_i): room_i is how far pixel i may go, s_i = 1 for l_inf and
    |w_i| for l2, and t is the one unknown, in which <w, d> is piecewise linear (paper, Appendix A). It is concave in
    t, too: Newton's method from 0 comes up to the root from below, and ends on it once no further pixel runs out of
    room, after a handful of steps where sorting all pixels would take as long as the network's pass.

    Args:
        x: points (B, ...) in [0, 1].
        w: normals (B, ...).
        b: offsets (B,).
        norm: ``linf`` or ``l2``.

    Returns:
        d (B, ...); where the hyperplane misses the box, the step to the point of the box closest to it.
    """
    flat, signed = x.flatten(1), (w * per_image(torch.where(b < 0, -1.0, 1.0).to(w.dtype), w)).flatten(1)
    weight, b = signed.abs(), b.abs()
    speed = torch.where(weight == 0, 1.0, weight) if norm == "l2" else torch.ones_like(weight)
    room = torch.where(signed > 0, 1 - flat, flat) * (weight != 0)  # (B, P)
    ends, rates, full = room / speed, weight * speed, weight * room
    t = torch.zeros_like(b)
    while True:
        free = ends > t[:, None]  # pixels that have room left
        slope = torch.where(free, rates, 0).sum(1)
        missing = b - torch.where(free, 0, full).sum(1)
        # Without slope all pixels are at the end of their room, and stay there.
        further = torch.where(slope > 0, missing / slope, math.inf)
        if not bool((further > t).any()):
            break
        t = torch.maximum(t, further)
    t = t[:, None]
    return (steepest(signed, "linf") * torch.minimum(t * speed, room)).view_as(x)


def _show(best: Best, rows: Tensor, x: Tensor, x_adv: Tensor, gap: Tensor, threat: Threat) -> None:
    """Among points that fool, ``best`` is to keep the nearest."""
    best.update(rows, x_adv, gap, torch.where(gap > 0, -threat.size(x_adv - x), -math.inf))


def _at_distance(x: Tensor, radius: Tensor, norm: Norm, random: SampleRandom) -> Tensor:
    """Random points at distances ``radius`` (B,) from the images, clipped to [0, 1]."""
    if norm == "l2":
        step = steepest(random.normal(x), "l2")
    else:
        step = 2 * random.uniform(x) - 1
        step = step / per_image(step.flatten(1).abs().amax(1).clamp_min(torch.finfo(x.dtype).tiny), step)
    return (x + per_image(radius, x) * step).clamp(0, 1)
