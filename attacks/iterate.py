"""What iterative attacks share: the steepest step, the random start, Adam, and the best point on the way."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attacks.base import Loss, Norm, SampleRandom, Threat, exact_of, is_stochastic, per_image


def steepest(direction: Tensor, norm: Norm) -> Tensor:
    """The step of norm 1 along which a linear function grows fastest; (B, ...) -> (B, ...).

    For l_inf the sign, for l2 the direction divided by its length. Where the gradient is zero there is no such
    step, and the result is zero; where it is infinite or no number, the result is NaN.
    """
    if norm == "linf":
        # torch's sign of a NaN is 0, of inf 1: a gradient that cannot be computed would pass for one that vanishes, or
        # points one way. Of anything finite, 0 is added.
        return direction.sign() + (direction - direction)
    # Divided by the largest entry first: the squares of a vanishing gradient would underflow to zero.
    largest = direction.flatten(1).abs().amax(1).clamp_min(torch.finfo(direction.dtype).tiny)
    scaled = direction / per_image(largest, direction)
    length = torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp_min(torch.finfo(scaled.dtype).tiny)
    return scaled / per_image(length, scaled)


def random_start(x: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
    """A uniformly random point of the ball around each image, clipped to [0, 1]; (B, ...) -> (B, ...).

    For l2: a uniform direction times eps * u^(1/d), u ~ U(0, 1), d pixels, which is uniform in the volume.
    """
    if threat.norm == "linf":
        return threat.project(x + threat.eps * (2 * random.uniform(x) - 1), x)
    radius = threat.eps * random.uniform(x.new_empty(x.shape[0])) ** (1 / x[0].numel())
    return threat.project(x + per_image(radius, x) * steepest(random.normal(x), "l2"), x)


class Best:
    """The best point visited for each image of a batch; until one is found, the clean image.

    A point where the network's output is not finite is never counted as fooling it. An image for which such a
    point was met, and none that fools, yields no image, but NaN: whoever judges it sees that the network could not
    be attacked, rather than a network that withstood. The point itself would not do: brought back into the ball, the
    network may give it finite logits again.

    Args:
        x: clean images (B, C, H, W).
    """

    def __init__(self, x: Tensor) -> None:
        self.point = x.clone()
        self.score = x.new_full((x.shape[0],), -math.inf)
        self.fooled = torch.zeros_like(self.score, dtype=torch.bool)
        self._broken = self.fooled.clone()

    def update(self, rows: Tensor, x_adv: Tensor, margin: Tensor, score: Tensor | None = None) -> None:
        """Show the points just visited.

        Args:
            rows: numbers of the images in the batch that the points belong to, (R,).
            x_adv: the points, (R, C, H, W).
            margin: > 0 where the point fools the network, (R,).
            score: what to prefer, larger is better, (R,); the margin if None. Points that fool must score above
                points that do not.
        """
        score = margin if score is None else score
        finite = margin.isfinite() & x_adv.flatten(1).sum(1).isfinite()
        better = finite & (score > self.score[rows])
        self.point[rows] = torch.where(per_image(better, x_adv), x_adv, self.point[rows])
        self.score[rows] = torch.where(better, score, self.score[rows])
        self.fooled[rows] |= finite & (margin > 0)
        self._broken[rows] |= ~finite

    def result(self) -> Tensor:
        """One candidate per image, (B, C, H, W)."""
        return torch.where(per_image(self._broken & ~self.fooled, self.point), math.nan, self.point)


STRETCHES = (1.0, 1.005, 1.01, 1.02, 1.05, 1.1, 1.2)


def stretch(exact: Callable[[Tensor], Tensor], x: Tensor, x_adv: Tensor, fools: Loss, y: Tensor) -> Tensor:
    """Follow each perturbation a little further, to the first point that fools the network itself.

    An attack that stops on the decision boundary of a stand-in may stop just before that of the network.

    Args:
        exact: the network; deterministic.
        x: clean images (B, C, H, W).
        x_adv: the points found, (B, C, H, W).
        fools: maps logits and ``y`` to a value > 0 where the network is fooled, (B,).
        y: labels (B,).

    Returns:
        x + t (x_adv - x), in [0, 1], with the smallest t of 1 to 1.2 that fools; ``x_adv`` where none does.
    """
    result, rows = x_adv.clone(), torch.arange(len(x), device=x.device)
    for t in STRETCHES:
        point = (x[rows] + t * (x_adv[rows] - x[rows])).clamp(0, 1) if t > 1 else x_adv[rows]
        with torch.no_grad():
            hit = fools(exact(point), y[rows]) > 0
        result[rows[hit]] = point[hit]
        rows = rows[~hit]
        if len(rows) == 0:
            break
    return result


def settled(model: nn.Module, x: Tensor, x_adv: Tensor, fools: Loss, y: Tensor) -> Tensor:
    """What a minimum-norm attack returns: ``x_adv``, stretched where ``model`` only stands in for a network.

    A random network has no boundary to be met exactly: there the points stay as they are.
    """
    exact = exact_of(model)
    return x_adv if exact is None or is_stochastic(model) else stretch(exact, x, x_adv, fools, y)


@contextlib.contextmanager
def questioned(model: nn.Module) -> Iterator[None]:
    """For the length of a block, thousands of passes without gradients are to come.

    A stand-in may have parts that are worth preparing for that: those with an attribute ``asked``, which is set here.
    """
    parts = [m for m in model.modules() if isinstance(getattr(m, "asked", None), bool)]
    before = [m.asked for m in parts]
    try:
        for m in parts:
            m.asked = True  # type: ignore[assignment]
        yield
    finally:
        for m, old in zip(parts, before, strict=True):
            m.asked = old


class Adam:
    """Adam (Kingma & Ba 2015) on a batch, written out so that single images can leave it.

    Args:
        like: the variable, (B, ...).
    """

    def __init__(self, like: Tensor) -> None:
        self.t = 0
        self.m, self.v = torch.zeros_like(like), torch.zeros_like(like)

    def step(self, grad: Tensor) -> Tensor:
        """What to subtract from the variable, for a learning rate of 1."""
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * grad
        self.v = 0.999 * self.v + 0.001 * grad * grad
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return m / (v.sqrt() + 1e-8)

    def keep(self, rows: Tensor) -> None:
        """Go on with some images only: a bool mask (B,)."""
        self.m, self.v = self.m[rows], self.v[rows]
