"""Square Attack (Andriushchenko, Croce, Flammarion, Hein 2020, https://arxiv.org/abs/1912.00049), l_inf and l2."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, Loss, SampleRandom, Threat, check, is_stochastic, logits_of, per_image
from attacks.iterate import Best, questioned
from attacks.losses import loss_towards

# Steps after which p is halved, on a scale of 10000 (sec. 5 of the paper).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
Start = Callable[[Tensor, Threat, SampleRandom], Tensor]
Propose = Callable[[Tensor, Tensor, Threat, int, Tensor], Tensor]
BLOCK = 64  # steps whose random numbers are drawn at once
# Queries from which on a stand-in is worth a compiled form of its own for passes without gradients.
MANY = 1000


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Black-box random search that changes one square window at a time and keeps what raises the margin.

    l_inf: starts from vertical stripes x +- eps, and sets a window to x + eps or x - eps in each channel
    (algorithm 2); a window that would change nothing is turned round, since that query would be wasted. l2: starts
    from a grid of tiles of the pattern eta, and moves the mass of one window, and what is left of eps, into another
    (algorithm 3). Targeted attacks use the margin, too.

    Args:
        target: see :class:`attacks.base.Attack`.
        reference: see :class:`attacks.base.Attack`.
        queries: answers of the network per image at most, all restarts together; on a random network each is the
            mean of ``eot`` passes, and the point kept so far is asked anew at each step, lest a lucky answer stay.
        p_init: share of the pixels in the first windows; halved on the paper's schedule, stretched to the number of
            steps. None means the paper's 0.05 for l_inf and 0.1 for l2.
        restarts: searches from other stripes or tiles, among which the queries are divided.
        eot: passes averaged per query when the network is random; 1 pass otherwise.
    """

    black_box: ClassVar[bool] = True
    queries: int = 5000
    p_init: float | None = 0.8
    restarts: int = 1
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.queries >= 4, "queries", "an integer >= 4", self.queries)
        p = self.p_init
        check(p is None or 0 < p <= 1, "p_init", "a number in (0, 1] or null", p)
        most = self.queries // 4
        check(
            1 <= self.restarts <= most,
            "restarts",
            f"an integer from 1 to queries / 4 = {most}",
            self.restarts,
        )
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError where there is no perturbation to fill with."""
        finite = threat.norm == "linf" or math.isfinite(threat.eps)
        check(finite, "eps", "a finite number for l2", threat.eps)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        check(x.ndim == 4, "x", "images (B, C, H, W)", tuple(x.shape))
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, loss = Best(x), loss_towards("margin", towards)
        each = (self.queries - (self.target not in ("none", "given"))) // self.restarts
        rows, noisy = torch.arange(len(x), device=x.device), is_stochastic(model)
        search = self._search_noisy if noisy else self._search
        with questioned(model) if self.queries >= MANY and not noisy else contextlib.nullcontext():
            for _ in range(self.restarts):
                if not noisy:
                    rows = rows[~best.fooled[rows]]
                if len(rows) == 0:
                    break
                search(model, x[rows], goal[rows], loss, threat, random.subset(rows), best, rows, each)
        return best.result()

    def _search(
        self,
        model: nn.Module,
        x: Tensor,
        goal: Tensor,
        loss: Loss,
        threat: Threat,
        random: SampleRandom,
        best: Best,
        rows: Tensor,
        queries: int,
    ) -> None:
        """Search with so many queries; show what was found to ``best``, in which these images are ``rows``.

        The point kept is the best one so far: ``best`` is shown it once, when the image leaves.
        """
        start, propose = self._kinds(threat)
        point, steps, draws = start(x, threat, random), queries - 1, x.new_empty(0)
        value = _ask(model, point, goal, loss, random)
        # Where an answer was not finite; such points are never kept.
        broken = ~value.isfinite()
        value = torch.where(broken, -math.inf, value)
        for step in range(steps):
            if step % _patience(x) == 0 and bool((value > 0).any()):
                _show(best, rows, point, value, broken, value > 0)
                stay = value <= 0
                x, goal, point, value, broken, rows = (t[stay] for t in (x, goal, point, value, broken, rows))
                draws, random = draws[stay] if step else draws, random.subset(stay)
                if len(rows) == 0:
                    return
            if step % BLOCK == 0:
                draws = self._draws(x, random)
            new = propose(x, point, threat, self._side(x, step / steps, threat), draws[:, step % BLOCK])
            new_value = _ask(model, new, goal, loss, random)
            broken |= ~new_value.isfinite() & (value <= 0)
            better = (new_value.isfinite() & (new_value > value) & (value <= 0)).nonzero().flatten()
            point[better], value[better] = new[better], new_value[better]
        _show(best, rows, point, value, broken, torch.ones_like(broken))

    def _search_noisy(
        self,
        model: nn.Module,
        x: Tensor,
        goal: Tensor,
        loss: Loss,
        threat: Threat,
        random: SampleRandom,
        best: Best,
        rows: Tensor,
        queries: int,
    ) -> None:
        """``_search`` on a random network: no image leaves, and the point kept is asked anew at each step."""
        start, propose = self._kinds(threat)
        point = start(x, threat, random)
        value, asked = _ask(model, point, goal, loss, random, self.eot), torch.ones_like(goal)
        # Points count only once they have been asked again.
        never = torch.full_like(value, -math.inf)
        best.update(rows, point, value, never)
        value = torch.where(value.isfinite(), value, -math.inf)
        steps = (queries - 1) // 2
        for step in range(steps):
            if step % BLOCK == 0:
                draws = self._draws(x, random)
            new = propose(x, point, threat, self._side(x, step / steps, threat), draws[:, step % BLOCK])
            new_value = _ask(model, new, goal, loss, random, self.eot)
            best.update(rows, new, new_value, never)
            again = _ask(model, point, goal, loss, random, self.eot)
            value, asked = (asked * value + again) / (asked + 1), asked + 1
            better = new_value.isfinite() & ~(new_value <= value)
            point = torch.where(per_image(better, new), new, point)
            value, asked = torch.where(better, new_value, value), torch.where(better, 1, asked)
        best.update(rows, point, value)

    def _kinds(self, threat: Threat) -> tuple[Start, Propose]:
        """Where a search begins, and how it goes on."""
        return (_stripes, _window) if threat.norm == "linf" else (_tiles, _two_windows)

    def _draws(self, x: Tensor, random: SampleRandom) -> Tensor:
        """U(0, 1) for the windows of a block of steps, (B, BLOCK, 5 + C)."""
        return random.uniform(x.new_empty(len(x), BLOCK, 5 + x.shape[1], dtype=torch.float32))

    def _side(self, x: Tensor, progress: float, threat: Threat) -> int:
        """Side of the window after a share ``progress`` of the steps."""
        height, width = x.shape[2:]
        p = self.p_init or (0.05 if threat.norm == "linf" else 0.1)
        p /= 2 ** sum(int(10_000 * progress) > at for at in HALVINGS)
        side = max(1, round(math.sqrt(p * height * width)))
        if threat.norm == "l2":  # as the authors' code: the pattern needs a middle
            side = max(3, side + 1 - side % 2)
        return min(side, height, width)


def _ask(
    model: nn.Module, points: Tensor, goal: Tensor, loss: Loss, random: SampleRandom, eot: int = 1
) -> Tensor:
    """The loss at each point, (B,)."""
    with torch.no_grad():
        return loss(logits_of(model, points, random, eot), goal)


def _patience(x: Tensor) -> int:
    """Steps after which images that are fooled leave. They change no more before, and a device is not waited for."""
    return 1 if x.device.type == "cpu" else BLOCK // 4


def _show(best: Best, rows: Tensor, point: Tensor, value: Tensor, broken: Tensor, which: Tensor) -> None:
    """Show ``best`` the points of some images, and for which of them some answer was not finite; all (B, ...)."""
    at = which.nonzero().flatten()
    best.update(rows[at], point[at], value[at])
    at = (which & broken).nonzero().flatten()
    best.update(rows[at], point[at], torch.full_like(value[at], math.nan))


def _corners(u: Tensor, high: int, wide: int, side: int) -> tuple[Tensor, Tensor]:
    """Upper left pixels of windows, (B,) and (B,), from U(0, 1) of shape (B, 2)."""
    top, left = u[:, 0] * (high - side + 1), u[:, 1] * (wide - side + 1)
    # Rounding may carry the largest u over the edge.
    return top.long().clamp_max(high - side), left.long().clamp_max(wide - side)


def _inside(top: Tensor, left: Tensor, side: int, x: Tensor) -> Tensor:
    """Which pixels lie in each image's window, (B, 1, H, W)."""
    row, column = (torch.arange(n, device=x.device)[None] for n in x.shape[2:])
    rows = (row >= top[:, None]) & (row < top[:, None] + side)
    columns = (column >= left[:, None]) & (column < left[:, None] + side)
    return rows[:, None, :, None] & columns[:, None, None, :]


def _place(top: Tensor, left: Tensor, side: int, x: Tensor) -> Tensor:
    """Numbers of the pixels of each image's window, (B, C, side * side)."""
    i = torch.arange(side, device=x.device)
    place = ((top[:, None] + i)[:, :, None] * x.shape[3] + (left[:, None] + i)[:, None, :]).flatten(1)
    return place[:, None].expand(-1, x.shape[1], -1)


def _stripes(x: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
    """Vertical stripes of one pixel at the ends of the range, each channel for itself (sec. 3.3 of the paper)."""
    low, high = threat.bounds(x)
    return torch.where(random.uniform(x[:, :, :1]) < 0.5, low, high)


def _window(x: Tensor, point: Tensor, threat: Threat, side: int, u: Tensor) -> Tensor:
    """Algorithm 2. The point +- 2 eps, brought back into the ball, is always one of the ends of the range."""
    height, width = x.shape[2:]
    place = _place(*_corners(u, height, width, side), side, x)
    low, high = threat.bounds(x.flatten(2).gather(2, place))
    old = point.flatten(2).gather(2, place)
    up = u[:, 5:, None] < 0.5
    new = torch.where(up, high, low)
    same = (new == old).flatten(1).all(1)
    new = torch.where(per_image(same, new), torch.where(up, low, high), new)
    return point.flatten(2).scatter(2, place, new).view_as(point)


def _pattern(side: int, like: Tensor) -> Tensor:
    """The pattern eta of length 1, (side, side): two halves of opposite sign, each falling off from its middle
    (eq. 2).
    """

    def half(rows: int, columns: int) -> Tensor:
        n = rows // 2
        row = (torch.arange(rows, device=like.device) - n).abs()
        column = (torch.arange(columns, device=like.device) - columns // 2).abs()
        distance = torch.maximum(row[:, None], column[None, :])
        rings = 1 / torch.arange(n + 1, 0, -1, device=like.device, dtype=like.dtype) ** 2  # k = 0, 1, ..., n
        return rings.cumsum(0)[n - distance]

    eta = torch.cat([half(side, side // 2), -half(side, side - side // 2)], 1)
    out: Tensor = eta / eta.norm()
    return out


def _tiles(x: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
    """A grid of 5 by 5 tiles (more, in part, where 5 does not divide the side), each the pattern or its negative,
    upright or lying; of length eps.
    """
    side = max(1, min(x.shape[2:]) // 5)
    down, across = (n // side for n in x.shape[2:])
    top, left = ((n - side * m) // 2 for n, m in zip(x.shape[2:], (down, across), strict=True))
    u = random.uniform(x.new_empty(len(x), 1 + x.shape[1], down, across, dtype=torch.float32))
    eta = _pattern(side, x)
    lying = u[:, :1, :, :, None, None] < 0.5
    sign = torch.where(u[:, 1:, :, :, None, None] < 0.5, 1.0, -1.0).to(x.dtype)
    tiles = sign * torch.where(lying, eta.T, eta)  # (B, C, down, across, side, side)
    delta = torch.zeros_like(x)
    filled = tiles.permute(0, 1, 2, 4, 3, 5).reshape(*x.shape[:2], down * side, across * side)
    delta[:, :, top : top + down * side, left : left + across * side] = filled
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return threat.project(x + per_image(threat.eps / length, x) * delta, x)


def _two_windows(x: Tensor, point: Tensor, threat: Threat, side: int, u: Tensor) -> Tensor:
    """Algorithm 3: the first window takes over the mass of the second, and what the point leaves of eps."""
    nu, (channels, height, width) = point - x, x.shape[1:]
    tiny = torch.finfo(x.dtype).tiny
    top, left = _corners(u[:, :2], height, width, side)
    first = _inside(top, left, side, x)
    second = _inside(*_corners(u[:, 2:4], height, width, side), side, x)
    unused = (threat.eps**2 - (nu**2).sum((1, 2, 3))).clamp_min(0)  # of the square of eps
    mass = torch.where(first | second, nu**2, 0).sum((2, 3)) + unused[:, None] / channels  # (B, C)

    place = _place(top, left, side, x)
    old = nu.flatten(2).gather(2, place)
    eta = _pattern(side, x)
    eta = torch.where(u[:, 4, None, None] < 0.5, eta.T, eta).flatten(1)[:, None]
    sign = torch.where(u[:, 5:, None] < 0.5, 1.0, -1.0).to(x.dtype)
    fill = sign * eta + old / old.norm(dim=2, keepdim=True).clamp_min(tiny)
    length = fill.norm(dim=2, keepdim=True)
    fill = torch.where(length > 1e-6, fill / length.clamp_min(tiny), sign * eta)  # the two may cancel out
    fill = fill * mass.sqrt()[:, :, None]
    nu = torch.where(second, 0, nu).flatten(2).scatter(2, place, fill).view_as(x)
    return threat.project(x + nu, x)
