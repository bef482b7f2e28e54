"""Rotations and translations, an adversary without any l_p ball (Engstrom, Tran, Tsipras, Schmidt, Madry 2019,
https://arxiv.org/abs/1712.02779).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import Attack, SampleRandom, Threat, check, is_stochastic, logits_of
from attacks.iterate import Best
from attacks.losses import loss_towards

Border = Literal["zeros", "border", "reflection"]

MOST = 100_000  # transformations tried of an image


def transform(x: Tensor, angle: Tensor, shift: Tensor, border: Border) -> Tensor:
    """Rotate each image about its centre, then move it; bilinear.

    Args:
        x: images (B, C, H, W).
        angle: degrees, (B,); a positive angle turns the picture counter-clockwise as seen on a screen.
        shift: pixels to the right and downwards, (B, 2).
        border: what lies outside the image: ``zeros``, its nearest edge pixel (``border``) or its mirror image
            (``reflection``).

    Returns:
        Images (B, C, H, W), in [0, 1] where ``x`` is.
    """
    h, w = x.shape[2:]
    radians, shift = torch.deg2rad(angle.to(x)), shift.to(x)
    cos, sin = radians.cos(), radians.sin()
    # Where an output pixel p, from the centre and y downwards, comes from: R^-1 (p - shift). affine_grid measures in
    # half widths and half heights.
    right, down = 2 / w * shift[:, 0], 2 / h * shift[:, 1]
    across, along = h / w * sin, w / h * sin
    rows = (cos, -across, across * down - cos * right, along, cos, -along * right - cos * down)
    matrix = torch.stack(rows, 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, mode="bilinear", padding_mode=border, align_corners=False)
    return moved.clamp(0, 1)  # a mean of four pixels leaves the box by rounding alone


@dataclass(frozen=True, kw_only=True)
class Geometric(Attack):
    """The worst of many rotations and translations of each image; it knows nothing of eps.

    Every transformation is tried with one forward pass, the clean image first; the one of the largest margin is
    returned. On a network that is not random, an image leaves at the first that fools.

    Args:
        target: see :class:`attacks.base.Attack`.
        reference: see :class:`attacks.base.Attack`.
        search: ``grid`` tries every pair of an angle and a shift; ``random`` the worst of ``draws`` transformations,
            uniform in both ranges.
        max_angle: rotations reach from minus to plus this many degrees, in [0, 180].
        max_shift: translations reach from minus to plus this many pixels along each axis, >= 0.
        angles: angles in the grid, evenly spaced, ends included; an odd number holds 0. With all shifts the grid has at
            most 100000 transformations.
        shifts: shifts per axis in the grid, likewise.
        draws: transformations drawn per image by the random search, the paper's k; at most 100000.
        border: what moves in from outside: ``zeros`` (black), ``border`` (the edge pixel) or ``reflection``.
        eot: passes over which logits are averaged when the network is random; 1 pass otherwise.

    Attributes:
        own_set: the candidates form a set of their own, and are judged as they are, whatever the threat's ball.
    """

    bounded: ClassVar[bool] = False
    own_set: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    search: Literal["grid", "random"] = "grid"
    max_angle: float = 30.0
    max_shift: float = 3.0
    angles: int = 31
    shifts: int = 5
    draws: int = 10
    border: Border = "zeros"
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.search in ("grid", "random"), "search", "grid or random", self.search)
        check(0 <= self.max_angle <= 180, "max_angle", "degrees in [0, 180]", self.max_angle)
        check(0 <= self.max_shift < math.inf, "max_shift", "a finite number of pixels >= 0", self.max_shift)
        for name in ("angles", "shifts", "draws", "eot"):
            check(getattr(self, name) >= 1, name, "an integer >= 1", getattr(self, name))
        tried = self.angles * self.shifts**2  # each is held as numbers before the first is tried
        check(tried <= MOST, "angles", f"angles * shifts^2 of at most {MOST}", tried)
        check(self.draws <= MOST, "draws", f"an integer in [1, {MOST}]", self.draws)
        check(self.border in get_args(Border), "border", " or ".join(get_args(Border)), self.border)

    @property
    def queries(self) -> int:
        """Forward passes per image at most, the clean image's included; those that choose a target left out."""
        return self.eot * (1 + (len(self.grid()) if self.search == "grid" else self.draws))

    def grid(self) -> list[tuple[float, float, float]]:
        """Angle, shift to the right and shift downwards of every transformation in the grid but the identity."""
        turns, moves = _spaced(self.max_angle, self.angles), _spaced(self.max_shift, self.shifts)
        return [t for t in ((a, u, v) for a in turns for u in moves for v in moves) if any(t)]

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return the worst transformation of each image, (B, C, H, W)."""
        check(x.ndim == 4, "x", "images (B, C, H, W)", tuple(x.shape))
        goal, towards = self.aim(model, x, y, random, self.eot)
        margin, stops = loss_towards("margin", towards), not is_stochastic(model)
        best, rows = Best(x), torch.arange(len(x), device=x.device)
        if self.search == "grid":
            plan = torch.tensor(self.grid(), dtype=x.dtype, device=x.device).view(1, -1, 3)
            plan = plan.expand(len(x), -1, -1)
        else:
            # One tensor per image, so that images which leave early do not shift the draws of others.
            reach = x.new_tensor([self.max_angle, self.max_shift, self.max_shift])
            plan = reach * (2 * random.uniform(x.new_empty(len(x), self.draws, 3)) - 1)
        for i in range(-1, plan.shape[1]):
            point = x[rows]
            if i >= 0:
                now = plan[rows, i]
                # Resampling where nothing moves would still round: such an image stays as it is, to the bit.
                moves = (now != 0).any(1)
                point[moves] = transform(point[moves], now[moves, 0], now[moves, 1:], self.border)
            with torch.no_grad():
                logits = logits_of(model, point, random.subset(rows), self.eot)
            best.update(rows, point, margin(logits, goal[rows]))
            if stops:
                rows = rows[~best.fooled[rows]]
                if len(rows) == 0:
                    break
        return best.result()


def _spaced(reach: float, count: int) -> list[float]:
    """``count`` values from -reach to reach, each once, and 0 exactly where it is the middle one."""
    if count == 1 or reach == 0:
        return [0.0]
    return [reach * (2 * i - (count - 1)) / (count - 1) for i in range(count)]
