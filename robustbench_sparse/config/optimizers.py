"""Optimizers and learning-rate schedules a config can name."""

from __future__ import annotations

import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, OneCycleLR, ReduceLROnPlateau

from attacks.base import LATER, check
from robustbench_sparse.config.optimizer_base import OptimizerSpec
from robustbench_sparse.config.sparse_optimizers import AdaBregSpec, LinBregSpec, ProxSGDSpec


@dataclass(frozen=True, kw_only=True)
class SGDSpec(OptimizerSpec):
    """Stochastic gradient descent with momentum (torch.optim.SGD).

    Args:
        lr: learning rate > 0.
        weight_decay: L2 coefficient.
        momentum: in [0, 1).
        nesterov: Nesterov's form; needs momentum.
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.momentum < 1, "momentum", "a number in [0, 1)", self.momentum)
        check(not self.nesterov or self.momentum > 0, "nesterov", "momentum > 0 with it", self.momentum)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for all parameters of a network."""
        return torch.optim.SGD(
            model.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True, kw_only=True)
class AdamSpec(OptimizerSpec):
    """Adam (torch.optim.Adam).

    Args:
        lr: learning rate > 0.
        weight_decay: L2 coefficient.
        beta1, beta2: decay of the moments, in [0, 1).
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.beta1 < 1, "beta1", "a number in [0, 1)", self.beta1)
        check(0 <= self.beta2 < 1, "beta2", "a number in [0, 1)", self.beta2)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for all parameters of a network."""
        return torch.optim.Adam(
            model.parameters(), lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )


@dataclass(frozen=True, kw_only=True)
class AdamWSpec(AdamSpec):
    """Adam with decoupled weight decay (torch.optim.AdamW); settings as for Adam."""

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for all parameters of a network."""
        return torch.optim.AdamW(
            model.parameters(), lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )


Signal = Literal["train_loss", "val_accuracy"]


class Schedule:
    """A learning-rate schedule as the loop uses it: told of every step and every epoch's training loss."""

    def __init__(self, scheduler: LRScheduler, per_step: bool = False, signal: Signal = "train_loss") -> None:
        self._scheduler, self._per_step, self._signal = scheduler, per_step, signal

    def after_step(self) -> None:
        """An optimizer step was taken."""
        if self._per_step:
            self._scheduler.step()

    def after_epoch(self, train_loss: float, val_accuracy: float) -> None:
        """An epoch ended with this mean training loss and this accuracy on the validation part.

        Raises:
            ValueError: when a schedule goes by an accuracy that there is none of.
        """
        if isinstance(self._scheduler, ReduceLROnPlateau):
            by_loss = self._signal == "train_loss"
            check(by_loss or not math.isnan(val_accuracy), "signal", "a validation part for it", self._signal)
            self._scheduler.step(train_loss if by_loss else 1 - val_accuracy)
        elif not self._per_step:
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: numbers only, so that it loads with ``weights_only=True``."""
        state = self._scheduler.state_dict()
        return {k: dict(v) if isinstance(v, dict) else v for k, v in state.items() if not callable(v)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self._scheduler.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec(ABC):
    """Base of schedule settings."""

    @abstractmethod
    def build(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """The schedule for a stage of this length."""


@dataclass(frozen=True, kw_only=True)
class Constant(ScheduleSpec):
    """The learning rate stays as it is."""

    def build(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """The schedule for a stage of this length."""
        return Schedule(LambdaLR(optimizer, _one))


def _one(_: int) -> float:
    return 1.0


@dataclass(frozen=True, kw_only=True)
class MultiStep(ScheduleSpec):
    """The learning rate is multiplied by gamma at given epochs.

    Args:
        milestones: epochs (from 0, within the stage) that begin with the smaller rate.
        gamma: factor in (0, 1].
    """

    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check(
            list(self.milestones) == sorted(set(self.milestones)) and all(m > 0 for m in self.milestones),
            "milestones",
            "rising epoch numbers > 0",
            self.milestones,
        )
        check(0 < self.gamma <= 1, "gamma", "a number in (0, 1]", self.gamma)

    def build(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """The schedule for a stage of this length."""
        return Schedule(MultiStepLR(optimizer, list(self.milestones), self.gamma))


@dataclass(frozen=True, kw_only=True)
class Plateau(ScheduleSpec):
    """The learning rate is multiplied by gamma when the training loss has stopped falling.

    Args:
        gamma: factor in (0, 1).
        patience: epochs without a better signal before it is applied.
        min_lr: lower bound.
        signal: ``train_loss``, or ``val_accuracy`` of the deployed network (Bungert et al., arXiv:2105.04319, 4.2).
        threshold: the share by which a signal has to be better to count, in [0, 1).
    """

    gamma: float = 0.5
    patience: int = 5
    min_lr: float = 0.0
    signal: Signal = "train_loss"
    # torch's: of an error of 2.5 %, less than one image of 5 000.
    threshold: float = field(default=1e-4, metadata=LATER)

    def __post_init__(self) -> None:
        check(0 < self.gamma < 1, "gamma", "a number in (0, 1)", self.gamma)
        check(self.patience >= 0, "patience", "a number >= 0", self.patience)
        check(0 <= self.min_lr < math.inf, "min_lr", "a finite number >= 0", self.min_lr)
        check(0 <= self.threshold < 1, "threshold", "a number in [0, 1)", self.threshold)
        known = typing.get_args(Signal)
        check(self.signal in known, "signal", " or ".join(known), self.signal)

    def build(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """The schedule for a stage of this length."""
        plateau = ReduceLROnPlateau(
            optimizer,
            factor=self.gamma,
            patience=self.patience,
            min_lr=self.min_lr,
            threshold=self.threshold,
        )
        return Schedule(plateau, signal=self.signal)


@dataclass(frozen=True, kw_only=True)
class OneCycle(ScheduleSpec):
    """The learning rate rises to its maximum and falls to nothing over the stage, step by step.

    The optimizer's lr is the maximum. Momentum is left as it is.

    Args:
        warm_up: share of the stage spent rising, in (0, 1).
        start_divisor: the first rate is the maximum divided by this.
        end_divisor: the last rate is the first divided by this.
    """

    warm_up: float = 0.3
    start_divisor: float = 25.0
    end_divisor: float = 1e4

    def __post_init__(self) -> None:
        check(0 < self.warm_up < 1, "warm_up", "a number in (0, 1)", self.warm_up)
        for name in ("start_divisor", "end_divisor"):
            check(1 <= getattr(self, name) < math.inf, name, "a finite number >= 1", getattr(self, name))

    def build(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """The schedule for a stage of this length."""
        scheduler = OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            # One more than there are steps: torch refuses a step beyond the total, and the last is taken.
            total_steps=epochs * steps_per_epoch + 1,
            pct_start=self.warm_up,
            div_factor=self.start_divisor,
            final_div_factor=self.end_divisor,
            cycle_momentum=False,
        )
        return Schedule(scheduler, per_step=True)


@dataclass(frozen=True, kw_only=True)
class Cyclic(ScheduleSpec):
    """The learning rate rises in a straight line to its maximum and falls in another to nothing, step by step.

    Of fast adversarial training (Wong et al. 2020, arXiv:2001.03994: ``peak`` 0.4 on MNIST, 0.5 on CIFAR-10; so do de
    Jorge et al., arXiv:2202.01181). The optimizer's lr is the maximum. Step t of T, from 1, has the value at t / (T +
    1): no step is wasted on a rate of 0.

    Args:
        peak: share of the stage at which the rate is at its maximum, in (0, 1).
    """

    peak: float = 0.5

    def __post_init__(self) -> None:
        check(0 < self.peak < 1, "peak", "a number in (0, 1)", self.peak)

    def build(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """The schedule for a stage of this length."""
        return Schedule(LambdaLR(optimizer, self.factor(epochs * steps_per_epoch)), per_step=True)

    def factor(self, total: int) -> Callable[[int], float]:
        """What the rate is multiplied by, given the number of steps before, from 0."""

        def at(step: int) -> float:
            time = (step + 1) / (total + 1)
            return max(0.0, min(time / self.peak, (1 - time) / (1 - self.peak)))

        return at


@dataclass(frozen=True, kw_only=True)
class Cosine(ScheduleSpec):
    """The learning rate falls along half a cosine to nothing, step by step (Loshchilov & Hutter 2017,
    arXiv:1608.03983).

    The optimizer's lr is the maximum. After W steps of warm-up in a straight line, step t of T, from 0, has the factor
    (1 + cos(pi (t - W) / (T - W))) / 2.

    Args:
        warm_up: share of the stage spent rising, in [0, 1).
    """

    warm_up: float = 0.0

    def __post_init__(self) -> None:
        check(0 <= self.warm_up < 1, "warm_up", "a number in [0, 1)", self.warm_up)

    def build(self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int) -> Schedule:
        """The schedule for a stage of this length."""
        return Schedule(LambdaLR(optimizer, self.factor(epochs * steps_per_epoch)), per_step=True)

    def factor(self, total: int) -> Callable[[int], float]:
        """What the rate is multiplied by, given the number of steps before, from 0."""
        rising = int(self.warm_up * total)

        def at(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            return (1 + math.cos(math.pi * min(1.0, (step - rising) / (total - rising)))) / 2

        return at


OPTIMIZERS: dict[str, type[OptimizerSpec]] = {
    "sgd": SGDSpec,
    "adam": AdamSpec,
    "adamw": AdamWSpec,
    "linbreg": LinBregSpec,
    "adabreg": AdaBregSpec,
    "proxsgd": ProxSGDSpec,
}

SCHEDULES: dict[str, type[ScheduleSpec]] = {
    "constant": Constant,
    "multistep": MultiStep,
    "plateau": Plateau,
    "one_cycle": OneCycle,
    "cyclic": Cyclic,
    "cosine": Cosine,
}

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AdaBregSpec",
    "AdamSpec",
    "AdamWSpec",
    "Constant",
    "Cosine",
    "Cyclic",
    "LinBregSpec",
    "MultiStep",
    "OneCycle",
    "OptimizerSpec",
    "Plateau",
    "ProxSGDSpec",
    "SGDSpec",
    "Schedule",
    "ScheduleSpec",
]
