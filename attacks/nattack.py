"""NATTACK (Li, Li, Wang, Zhang, Gong 2019, https://arxiv.org/abs/1905.00441): learns a distribution of adversarials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, Loss, SampleRandom, Threat, check, is_stochastic
from attacks.iterate import Best
from attacks.losses import loss_towards
from attacks.random_search import PART, margins_of, to_show

EDGE = 0.02  # tanh is flat at 0 and 1: the search starts this far from them at most, in pixel units


@dataclass(frozen=True, kw_only=True)
class NAttack(Attack):
    """Black-box search for a normal distribution whose draws fool the network (algorithm 1).

    A draw is z = mu + sigma * e, e ~ N(0, I), in the variable z with g(z) = (tanh(z) + 1) / 2; the image tried is
    x + P(g(z) - x), P the projection onto the ball. The margins f of a step's draws are z-scored, and
    mu <- mu + learning_rate / (samples * sigma) * sum f e (the paper descends on -f). Where the paper now and then
    tries the mean, here each step tries x + P(g(mu) - x), too: on a random network it is the only candidate, as
    the largest of many noisy margins flatters its draw. mu starts at the image, its pixels moved off 0 and 1, where g
    would hardly move at all: by ``EDGE``, or less in a small ball.

    Args:
        target: see :class:`attacks.base.Attack`.
        reference: see :class:`attacks.base.Attack`.
        samples: draws per step, the paper's b; at most 100000, as those of an image are held at once.
        steps: steps at most; on a network that is not random, an image leaves once it is fooled.
        sigma: standard deviation of the draws, in units of z.
        learning_rate: the paper's eta, in units of z.
        eot: passes averaged per query when the network is random; 1 pass otherwise.
    """

    black_box: ClassVar[bool] = True
    samples: int = 300
    steps: int = 600
    sigma: float = 0.1
    learning_rate: float = 0.02
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(2 <= self.samples <= 100_000, "samples", "an integer in [2, 100000]", self.samples)
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        check(0 < self.sigma < math.inf, "sigma", "a finite number > 0", self.sigma)
        rate = self.learning_rate
        check(0 < rate < math.inf, "learning_rate", "a finite number > 0", rate)
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)

    @property
    def queries(self) -> int:
        """Answers of the network per image at most; on a random network each is the mean of ``eot`` passes."""
        return self.steps * (self.samples + 1) + (self.target not in ("none", "given"))

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, loss, noisy = Best(x), loss_towards("margin", towards), is_stochastic(model)
        share = threat.eps if threat.norm == "linf" else threat.eps / math.sqrt(x[0].numel())
        edge = min(EDGE, share / 2)
        mu = torch.atanh(2 * x.clamp(edge, 1 - edge) - 1)
        rows = torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            # All draws of an image are held at once, those of a few images at a time.
            for part in torch.split(rows, max(1, PART // (self.samples + 1))):
                mu[part] += self._step(
                    model, x[part], mu[part], goal[part], loss, threat, random.subset(part), best, part, noisy
                )
            if not noisy:
                rows = rows[~best.fooled[rows]]
            if len(rows) == 0:
                break
        return best.result()

    def _step(
        self,
        model: nn.Module,
        x: Tensor,
        mu: Tensor,
        goal: Tensor,
        loss: Loss,
        threat: Threat,
        random: SampleRandom,
        best: Best,
        rows: Tensor,
        noisy: bool,
    ) -> Tensor:
        """One step of the images ``rows`` of ``best``: try the draws and the mean, return the step of mu."""
        e = random.normal(x[:, None].expand(-1, self.samples, *x.shape[1:]))
        z = torch.cat([mu[:, None], mu[:, None] + self.sigma * e], 1)
        clean = x[:, None].expand_as(z).flatten(0, 1)
        points = threat.project(((z.tanh() + 1) / 2).flatten(0, 1), clean).view(z.shape)
        # In the images' type: the scores of a network that answers in half precision are summed like any others.
        f = margins_of(model, points, goal, loss, random, self.eot).to(x.dtype)
        best.update(rows, points[:, 0], f[:, 0])
        f, points = f[:, 1:], points[:, 1:]
        top = to_show(f)
        value = f.gather(1, top[:, None])[:, 0]
        show = (~value.isfinite() if noisy else torch.ones_like(value, dtype=torch.bool)).nonzero().flatten()
        best.update(rows[show], points[show, top[show]], value[show])
        finite = f.isfinite()
        # A draw whose margin is not finite has no say in the step.
        count = finite.sum(1, keepdim=True).clamp_min(1)
        f = torch.where(finite, f, 0)
        f = torch.where(finite, f - f.sum(1, keepdim=True) / count, 0)
        spread = ((f**2).sum(1, keepdim=True) / count).sqrt()
        score = f / spread.clamp_min(torch.finfo(f.dtype).tiny)
        return self.learning_rate / (self.samples * self.sigma) * torch.einsum("bn,bn...->b...", score, e)
