"""Random search: many independent draws from the threat, the check of Carlini et al. 2019
(https://arxiv.org/abs/1902.06705, sec. 4.3) that gradient attacks do not miss what chance alone finds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, Loss, SampleRandom, Threat, check, is_stochastic, logits_of, per_image
from attacks.iterate import Best, steepest
from attacks.losses import loss_towards

PART = 1024  # images sent through the network at once: bounds the memory
GROUP = 32  # draws of an image between two looks at whether it is fooled


def margins_of(
    model: nn.Module, points: Tensor, goal: Tensor, loss: Loss, random: SampleRandom, draws: int = 1
) -> Tensor:
    """The loss of several points per image, without gradients.

    Args:
        model: the network, in eval mode.
        points: (B, N, C, H, W); B * N at most ``PART``, or B = 1: then the points are sent in parts.
        goal: classes (B,).
        loss: maps logits and classes to one value per image.
        random: the images' random streams, B of them; the points of an image share its stream.
        draws: passes to average the logits over when the network is random.

    Returns:
        The losses (B, N).
    """
    values = []
    for part in torch.split(points, PART, dim=1):
        # An image's points lie in parts of the same length in any batch, so its stream is used in the same order.
        owner = torch.arange(len(points), device=points.device).repeat_interleave(part.shape[1])
        with torch.no_grad():
            logits = logits_of(model, part.flatten(0, 1), random.subset(owner), draws)
        values.append(loss(logits, goal[owner]).view(len(points), -1))
    return torch.cat(values, 1)


def to_show(margins: Tensor) -> Tensor:
    """Which of several points (B, N) is for ``Best`` to see, (B,): the one of the largest margin.

    Where none fools and a margin is not finite, that one: the network must not seem to withstand.
    """
    finite = margins.isfinite()
    fooled = ((margins > 0) & finite).any(1, keepdim=True)
    return torch.where(finite, margins, torch.where(fooled, -math.inf, math.inf).to(margins)).argmax(1)


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Attack):
    """WEAK check by chance alone: the draw of largest margin among many from the ball and its surface.

    A network on which it finds an adversarial that a gradient attack missed has hidden its gradients. It does
    not replace such an attack: in many dimensions hardly any draw lies in the direction that matters.

    For l_inf, a draw is uniform in the part of the cube inside [0, 1], or one of the corners of this part. For
    l2, it is uniform in the ball or on the sphere, then clipped to [0, 1]. On a random network the winner of each
    ``GROUP`` of draws is judged by a query of its own, as the largest of many noisy values flatters its draw.

    Args:
        target: see :class:`attacks.base.Attack`.
        reference: see :class:`attacks.base.Attack`.
        queries: answers of the network per image at most; on a random network each is the mean of ``eot`` passes.
        corners: share of the draws at the corners (l_inf) or on the sphere (l2), in [0, 1].
        eot: passes averaged per query when the network is random; 1 pass otherwise.
    """

    weak: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    queries: int = 10_000
    corners: float = 0.5
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.queries >= 3, "queries", "an integer >= 3", self.queries)
        check(0 <= self.corners <= 1, "corners", "a number in [0, 1]", self.corners)
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError for a ball without a uniform distribution."""
        finite = threat.norm == "linf" or math.isfinite(threat.eps)
        check(finite, "eps", "a finite number for random draws in an l2 ball", threat.eps)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, loss, noisy = Best(x), loss_towards("margin", towards), is_stochastic(model)
        rows, drawn = torch.arange(len(x), device=x.device), 0
        left = self.queries - (self.target not in ("none", "given"))
        while left > noisy and len(rows):
            count = min(GROUP, left - noisy)
            for part in torch.split(rows, PART // GROUP):
                streams = random.subset(part)
                points = self._draw(x[part], threat, drawn, count, streams)
                margins = margins_of(model, points, goal[part], loss, streams, self.eot)
                winner = to_show(margins)
                point = points[torch.arange(len(part), device=x.device), winner]
                value = margins.gather(1, winner[:, None])[:, 0]
                if noisy:
                    again = margins_of(model, point[:, None], goal[part], loss, streams, self.eot)[:, 0]
                    value = torch.where(value.isfinite(), again, value)
                best.update(part, point, value)
            left, drawn = left - count - noisy, drawn + count
            if not noisy:
                rows = rows[~best.fooled[rows]]
        return best.result()

    def _draw(self, x: Tensor, threat: Threat, first: int, count: int, random: SampleRandom) -> Tensor:
        """Draws ``first`` to ``first + count`` of each image, (B, count, C, H, W)."""
        number = torch.arange(first, first + count + 1, device=x.device, dtype=torch.float64)
        whole = (number * self.corners).floor()
        corner = (whole[1:] > whole[:-1]).view(1, -1, *[1] * (x.ndim - 1))  # spread evenly over the draws
        like = x[:, None].expand(-1, count, *x.shape[1:])
        if threat.norm == "linf":
            low, high = (b[:, None] for b in threat.bounds(x))
            u = random.uniform(like)
            inner = (low + (high - low) * u).clamp(low, high)
            return torch.where(corner, torch.where(u < 0.5, low, high), inner)
        direction = steepest(random.normal(like).flatten(0, 1), "l2")
        radius = random.uniform(x.new_empty(len(x), count)) ** (1 / x[0].numel())
        radius = torch.where(corner.view(1, -1), 1.0, radius).flatten()
        clean = like.flatten(0, 1)
        moved = clean + threat.eps * per_image(radius, clean) * direction
        return threat.project(moved, clean).view(like.shape)
