"""MART (Wang et al. 2020, https://openreview.net/forum?id=rklOg6EFwS): misclassified images weigh more."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import check
from attacks.ifgsm import IFGSM
from defenses.base import Step
from defenses.robust.attacking import Attacking, quick_copy, record, scaled, second_pass
from defenses.robust.draws import BatchRandom
from defenses.robust.trades import divergence


@dataclass(frozen=True, kw_only=True)
class MART(Attacking):
    """Adversarial training whose loss tells images that are misclassified without an attack from the others.

    min_w E [ BCE(f(x'), y) + lambda * KL(f(x) || f(x')) * (1 - f_y(x)) ], f the softmax outputs, x' the last point of
    steps on the cross-entropy, BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k) (Wang et al., eq. (7) to (11)). It
    takes the place of the task's loss. The minibatch trained on is x'; x goes through the network once more, in
    training mode. The authors' code bounds the second logarithm by adding 1e-4; here it is computed from the logits as
    it is printed. With radius 0 this is natural training.

    Further settings (``norm``, ``eps``, ``eps_warm_up``) are those of :class:`defenses.robust.attacking.Attacking`.

    Args:
        lam: the paper's lambda, finite and >= 0; 6 is the default of the authors' loss, 5 what they train ResNet-18
            with.
        steps: gradient steps to x', >= 1.
        step_size: their length in pixel units; None means 2.5 * eps / steps, about the authors' 0.007 at 8/255.
        start_noise: the steps start at x + start_noise * N(0, 1), finite and >= 0.
    """

    lam: float = 6.0
    steps: int = 10
    step_size: float | None = None
    start_noise: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.lam < math.inf, "lam", "a finite number >= 0", self.lam)
        check(0 <= self.start_noise < math.inf, "start_noise", "a finite number >= 0", self.start_noise)
        self.attack()  # checks the settings it shares with IFGSM, by the same names

    def attack(self) -> IFGSM:
        """The attack trained against, but for its start."""
        return IFGSM(steps=self.steps, step_size=self.step_size, keep="last")

    @property
    def passes(self) -> int:
        """Gradient passes per minibatch."""
        return 0 if self.eps == 0 else self.steps

    def check_stage(self, s: Step) -> None:
        """Refuse a ball in which a step has no length."""
        super().check_stage(s)
        self.attack().check_threat(self.threat(s.threat))

    def perturb(self, s: Step) -> Tensor:
        """Find x' on the current network, and keep x for the loss."""
        self._now.clear()
        if self.threat(s.threat).eps == 0:
            return s.x
        share, attack, x = self.grown(s), self.attack(), s.x
        if attack.step_size is not None:
            attack = dataclasses.replace(attack, step_size=share * attack.step_size)
        threat, random = scaled(self.threat(s.threat), share), BatchRandom(s.generator, len(x), s.part)
        start = x + self.start_noise * random.normal(x)
        self._now["x"] = x
        with quick_copy(s) as network:
            return attack.from_start(network, x, s.y, threat, start, random).detach()

    def criterion(self, s: Step) -> Tensor | None:
        """The loss above, the mean over the minibatch; None with radius 0."""
        if "x" not in self._now:
            return None
        assert s.outputs is not None
        clean, self._now["statistics"] = second_pass(s, self._now["x"])
        unsure = 1 - F.softmax(clean, 1).gather(1, s.y[:, None]).squeeze(1)
        return (boosted(s.outputs, s.y) + self.lam * divergence(clean, s.outputs) * unsure).mean()

    def after_backward(self, s: Step) -> None:
        """Batch-norm statistics take in x."""
        record(self._now.pop("statistics", []))


def boosted(logits: Tensor, y: Tensor) -> Tensor:
    """The boosted cross-entropy -log p_y - log(1 - max_{k != y} p_k) of each image; (B, K), (B,) -> (B,).

    1 - p_k is the sum of the other probabilities, so its logarithm is a difference of two log-sum-exps and exact where
    p_k rounds to 1.
    """
    own = torch.zeros_like(logits).scatter(1, y[:, None], -math.inf)
    wrong = (logits + own).argmax(1, keepdim=True)
    rest = logits.scatter(1, wrong, -math.inf)
    return F.cross_entropy(logits, y, reduction="none") + logits.logsumexp(1) - rest.logsumexp(1)
