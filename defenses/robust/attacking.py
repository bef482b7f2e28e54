"""What defenses that attack the training images share: the ball, its growth, the network attacked, a second pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.base import LATER, Norm, Threat, check, is_stochastic
from defenses.base import Defense, Precision, Step, forward_of, frozen_statistics


@dataclass(frozen=True, kw_only=True)
class Attacking(Defense):
    """Base of the defenses that attack every minibatch of training images, in a ball of their own or the benchmark's.

    Args:
        norm: ``linf`` or ``l2``; None takes the benchmark's threat. A norm needs an ``eps`` beside it.
        eps: radius of the ball in pixel units, >= 0; None takes the benchmark's.
        eps_warm_up: epochs over which the radius rises from 0, in proportion to the minibatches trained on so far, >=
            0; step sizes rise with it. Counted over all stages: it is warmed up once.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    norm: Norm | None = None
    eps: float | None = None
    eps_warm_up: int = field(default=0, metadata=LATER)
    # Of the step at work: it ends before anything is saved.
    _now: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check(self.norm in (None, "linf", "l2"), "norm", "'linf', 'l2' or null", self.norm)
        check(self.eps is None or self.eps >= 0, "eps", "a number >= 0 or null", self.eps)
        check(self.norm is None or self.eps is not None, "eps", "a radius beside norm", self.eps)
        check(self.eps_warm_up >= 0, "eps_warm_up", "an integer >= 0", self.eps_warm_up)

    def threat(self, benchmark: Threat) -> Threat:
        """The ball trained against: the benchmark's where a setting is None."""
        norm = benchmark.norm if self.norm is None else self.norm
        return Threat(norm=norm, eps=benchmark.eps if self.eps is None else self.eps)

    def check_stage(self, s: Step) -> None:
        """Refuse a radius that bounds nothing: pixels lie in [0, 1], and 8 / 255 is what is meant by 8."""
        threat = self.threat(s.threat)
        fine = threat.norm != "linf" or not 1 < threat.eps < math.inf
        check(fine, "eps", "at most 1 for linf, in units of the pixel range (8/255, not 8)", threat.eps)

    def begin(self, s: Step) -> None:
        """As ``check_stage``."""
        self.check_stage(s)

    def grown(self, s: Step) -> float:
        """The share of the full radius that this minibatch is attacked with, in (0, 1]; asked once a minibatch."""
        if self.eps_warm_up == 0:
            return 1.0
        seen = self.memory.get("minibatches", 0) + 1
        self.memory["minibatches"] = seen
        return min(1.0, float(seen / (self.eps_warm_up * s.steps_per_epoch)))


def scaled(threat: Threat, share: float) -> Threat:
    """The same ball with a share of its radius."""
    return threat if share == 1 else Threat(norm=threat.norm, eps=share * threat.eps)


@contextmanager
def quick_copy(
    s: Step, precision: Precision | None = None, batch_statistics: bool = False
) -> Iterator[nn.Module]:
    """The network to attack in training, as it is now: a quick copy in a precision, else as ``attacked``.

    Args:
        s: the step.
        precision: of the copy; None means the stage's.
        batch_statistics: as for ``attacked``: then there is no copy.
    """
    if s.quick is not None and not batch_statistics:
        yield s.quick(precision)
        return
    with attacked(s, batch_statistics) as network:
        yield network


@contextmanager
def attacked(s: Step, batch_statistics: bool = False) -> Iterator[nn.Module]:
    """The network to attack in training, as it is now: itself in float32, a quick copy in a stage of less precision.

    Args:
        s: the step.
        batch_statistics: batch-norm layers use the batch's own statistics, as in training mode; else the running ones.
            Neither changes the running ones.
    """
    if s.fast is not None and not batch_statistics:
        yield s.fast()
        return
    statistics = batch_norm_of_the_batch if batch_statistics else frozen_statistics
    with statistics(s.model):
        yield s.model


@contextmanager
def batch_norm_of_the_batch(model: nn.Module) -> Iterator[None]:
    """Eval mode in which batch-norm layers normalise by the batch's statistics and keep no record of them."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    running = [(m.running_mean, m.running_var) for m in layers]
    with frozen_statistics(model):
        try:
            for m in layers:  # without running statistics there is nothing to use or to update
                m.running_mean = m.running_var = None
            yield
        finally:
            for m, (mean, var) in zip(layers, running, strict=True):
                m.running_mean, m.running_var = mean, var


_TOGETHER = 64  # images a thread takes through a network at once: their activations stay in its core's caches


def parts(network: nn.Module, x: Tensor) -> list[slice]:
    """Parts of a minibatch that are attacked one after another, which is quicker on a CPU and gives the same numbers.

    All at once where images are worth less apart: on a GPU, in bfloat16, whose activations are half as large; and where
    they are not apart, as in a random network, whose noise has one stream, or under batch-norm by the batch.

    Args:
        network: what is attacked, as it is now.
        x: images (B, C, H, W).

    Returns:
        Slices of the batch, in order.
    """
    size, device = _TOGETHER * torch.get_num_threads(), x.device.type
    halved = getattr(network, "precision", "fp32") != "fp32" or torch.is_autocast_enabled(device)
    if device != "cpu" or halved or len(x) <= size or is_stochastic(network):
        return [slice(len(x))]
    if any(isinstance(m, _BatchNorm) and m.running_mean is None for m in network.modules()):
        return [slice(len(x))]
    return [slice(start, start + size) for start in range(0, len(x), size)]


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
Statistics = list[tuple[Tensor, Tensor]]  # a buffer of the network, and what it will be


def second_pass(s: Step, x: Tensor) -> tuple[Tensor, Statistics]:
    """A pass of further images through the network as it is trained, after that of the minibatch.

    Until backward() batch-norm statistics must not change. What they become by this pass, on top of the first one, is
    given back beside the outputs: ``record`` puts it in place afterwards, so that the network is judged with the
    statistics of all that it was trained on.

    Args:
        s: the step.
        x: images (B, C, H, W).

    Returns:
        Outputs (B, K) with their graph, and the statistics.
    """
    layers = [
        m for m in s.model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    own = [
        (m, name, getattr(m, name)) for m in layers for name in _STATISTICS if getattr(m, name) is not None
    ]
    try:
        for m, name, buffer in own:
            setattr(m, name, buffer.clone())
        outputs = forward_of(s)(x)
        return outputs, [(buffer, getattr(m, name)) for m, name, buffer in own]
    finally:
        for m, name, buffer in own:
            setattr(m, name, buffer)


@torch.no_grad()
def record(statistics: Statistics) -> None:
    """Put the statistics of a second pass in place."""
    for buffer, after in statistics:
        buffer.copy_(after)
