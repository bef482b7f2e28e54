"""Averaging the weights on the way (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, exponentially).

With adversarial training: Gowal et al. 2020, https://arxiv.org/abs/2010.03593, section 3.5.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.base import GeneratorNoise, check, noise_from
from defenses.base import Defense, Step, gathered

RAMP = 10  # the decay after t steps is at most (1 + t) / (RAMP + t), so that the first weights are soon forgotten


@dataclass(frozen=True, kw_only=True)
class EMA(Defense):
    """The network that is judged has the exponential moving average of the weights on their way.

    a <- tau a + (1 - tau) w after every optimizer step, a the first w; tau is the decay, or (1 + t) / (10 + t) after t
    steps while that is less. The average is taken of all parameters. Batch-norm statistics are not averaged: they are
    those of the averaged network, over the last minibatches of the epoch as they were trained on, every minibatch with
    the same weight; layers such as dropout are as at test time meanwhile.

    Put it behind the defenses that make zeros: where a parameter of the network they would deploy is exactly 0, the
    average's is 0, too, so that the zeros in the file are theirs. Every stage begins an average of its own. At decay 0
    nothing is done.

    Args:
        decay: tau, in [0, 1); 0.995 to 0.999 are usual.
        warm_up: epochs of the stage before the average begins, >= 0; until then the network itself is deployed.
        minibatches: of an epoch, the last so many are what batch-norm statistics are taken over, >= 1.
    """

    decay: float = 0.995
    warm_up: int = 0
    minibatches: int = 10
    # The epoch's last minibatches: an epoch is over before anything is saved.
    _seen: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check(0 <= self.decay < 1, "decay", "a number in [0, 1)", self.decay)
        check(self.warm_up >= 0, "warm_up", "an integer >= 0", self.warm_up)
        check(1 <= self.minibatches <= 10_000, "minibatches", "an integer in [1, 10000]", self.minibatches)

    def begin(self, s: Step) -> None:
        """No average yet."""
        self.memory.clear()
        self._seen.clear()

    @torch.no_grad()
    def after_step(self, s: Step) -> None:
        """a <- tau a + (1 - tau) w."""
        if self.decay == 0 or s.epoch < self.warm_up:
            return
        self._see(s)
        now = {name: w.detach() for name, w in s.model.named_parameters()}
        average: dict[str, Tensor] = self.memory.setdefault("average", {})
        if average.keys() != now.keys():
            self.memory.update(average={name: w.clone() for name, w in now.items()}, steps=0)
            return
        steps = self.memory["steps"] = self.memory["steps"] + 1
        tau = min(self.decay, (1 + steps) / (RAMP + steps))
        torch._foreach_lerp_(list(average.values()), [now[name] for name in average], 1 - tau)

    @torch.no_grad()
    def deploy(self, model: nn.Module) -> nn.Module:
        """A copy with the average where ``model`` is not 0; the network itself before there is one."""
        if "average" not in self.memory:
            return model
        averaged = copy.deepcopy(model)
        for name, w in averaged.named_parameters():
            if name in self.memory["average"]:
                w.copy_(torch.where(w == 0, w, self.memory["average"][name]))
        _renew_statistics(averaged, self._seen.get("minibatches", []))
        return averaged

    def _see(self, s: Step) -> None:
        if s.minibatch == 0:
            self._seen["minibatches"] = []
        seen = self._seen.setdefault("minibatches", [])
        if s.minibatch >= s.steps_per_epoch - self.minibatches:
            seen.append(gathered(s, s.x))


def _renew_statistics(model: nn.Module, minibatches: list[Tensor]) -> None:
    """Batch-norm statistics of a network over minibatches of images (B, C, H, W); without any they stay."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers or not minibatches:
        return
    momenta = [m.momentum for m in layers]
    model.eval()
    for m in layers:
        m.reset_running_stats()
        m.momentum = None  # every minibatch with the same weight
        m.train()
    # The noise of a random network: the same every time, and no stream of the run is moved on.
    with noise_from(model, GeneratorNoise(torch.Generator().manual_seed(0))):
        for x in minibatches:
            model(x)
    for m, momentum in zip(layers, momenta, strict=True):
        m.momentum = momentum
    model.eval()
