"""PGD on a restoration network: the input in the ball whose output is furthest from the clean image.

The steps are those of Madry et al. 2018 (https://arxiv.org/abs/1706.06083); the loss is the squared error, as in Antun
et al. 2020 (https://doi.org/10.1073/pnas.1907377117), whose instabilities of image reconstruction this looks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, SampleRandom, Threat, check, input_gradient, logits_of
from attacks.iterate import Best, random_start, steepest
from attacks.losses import squared_error


@dataclass(frozen=True, kw_only=True)
class AroundInput(Threat):
    """The ball around an input that may lie outside [0, 1]: the box reaches as far as the input itself does."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Bring ``x_adv`` into the ball around ``x``, and no pixel further out of [0, 1] than ``x`` has it."""
        return self.into_ball(x_adv, x).clamp(x.clamp_max(0), x.clamp_min(1))


@dataclass(frozen=True, kw_only=True)
class PGDMse(Attack):
    """Ascend the squared error between output and clean image, inside the ball around the degraded input.

    ``y`` are the clean images, (B, C, H, W). The input may leave [0, 1] as noise may; what is in that box stays in it,
    and a pixel outside moves no further away.

    Args:
        target: ``none``; there are no classes.
        reference: ``label``; there are none.
        steps: gradient steps of every path.
        step_size: in pixel units; None means 2.5 * eps / steps.
        random_start: start at a uniformly random point of the ball; false starts at the input.
        restarts: paths per image, each from a start of its own; the point of the largest error on all of them counts.
        eot: gradients averaged per step when the network is random; 1 pass otherwise.
    """

    tasks: ClassVar[tuple[str, ...]] = ("restore",)

    steps: int = 20
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.target == "none", "target", "none", self.target)
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        alpha = self.step_size
        check(alpha is None or 0 < alpha < math.inf, "step_size", "a finite number > 0 or null", alpha)
        check(self.restarts >= 1, "restarts", "an integer >= 1", self.restarts)
        check(self.random_start or self.restarts == 1, "restarts", "1 without random_start", self.restarts)
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError for a ball without end: nothing would bound a pixel's step."""
        check(math.isfinite(threat.eps), "eps", "a finite radius", threat.eps)

    def check_targets(self, x: Tensor, y: Tensor) -> None:
        """Raise ValueError for clean images of another shape."""
        check(y.shape == x.shape, "y", f"clean images of shape {tuple(x.shape)}", tuple(y.shape))

    def check_range(self, x: Tensor) -> None:
        """Inputs may have any finite value."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        reach = AroundInput(norm=threat.norm, eps=threat.eps)
        alpha = 2.5 * threat.eps / self.steps if self.step_size is None else self.step_size
        best, rows = Best(x), torch.arange(len(x), device=x.device)

        def show(point: Tensor, outputs: Tensor) -> None:
            error = squared_error(outputs, y)
            best.update(rows, point, -error, error)  # nothing is "fooled": an output that is not finite shows

        with torch.no_grad():
            show(x, logits_of(model, x, random, self.eot))  # no attack makes a network better
        for _ in range(self.restarts):
            x_adv = random_start(x, reach, random) if self.random_start else x
            for _ in range(self.steps):
                grad, _, outputs = input_gradient(model, x_adv, y, squared_error, random, self.eot)
                show(x_adv, outputs)
                x_adv = reach.project(x_adv + alpha * steepest(grad, reach.norm), x)
            with torch.no_grad():
                show(x_adv, logits_of(model, x_adv, random, self.eot))
        return best.result()
