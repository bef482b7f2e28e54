"""Sparse optimizers a config can name: which regulariser acts on which layers of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import defenses
from attacks.base import check
from defenses.base import chosen_weights, prunable
from defenses.regularisers import RegulariserEntry, make_regulariser
from robustbench_sparse.config.optimizer_base import OptimizerSpec

# A weight of each kind of layer, to try a regulariser on before anything trains.
_SHAPES = {"linear": (2, 3), "conv": (2, 3, 3, 3)}


@dataclass(frozen=True, kw_only=True)
class SparseOptimizerSpec(OptimizerSpec):
    """Base of sparse optimizers' settings: what they regularise, and how much.

    Biases and batch-norm are never regularised.

    Args:
        lam: lambda, the regularisers' weight, >= 0.
        linear: regulariser of the weights of linear layers: a name or ``{name: ..., settings}``; null for none.
        conv: the same for convolutions.
    """

    sparsifies: ClassVar[bool] = True
    lam: float = 0.0
    linear: RegulariserEntry | None = "l1"
    conv: RegulariserEntry | None = "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.lam >= 0 and math.isfinite(self.lam), "lam", "a finite number >= 0", self.lam)
        for setting, shape in _SHAPES.items():
            entry = getattr(self, setting)
            if entry is None:
                continue
            regulariser = make_regulariser(entry, setting)
            try:
                regulariser.prox(torch.ones(shape), 0.1)
            except ValueError as e:
                raise ValueError(f"{setting}: {e}") from None

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups: linear weights, convolution weights, and the rest without a regulariser."""
        linear = list(chosen_weights(model, "linear").values())
        of_linear = {id(w) for w in linear}
        conv = [w for w in prunable(model).values() if id(w) not in of_linear]
        of_either = of_linear | {id(w) for w in conv}
        rest = [p for p in model.parameters() if id(p) not in of_either]
        groups: list[dict[str, Any]] = [
            {"params": _once(linear), "regulariser": self.linear},
            {"params": _once(conv), "regulariser": self.conv},
            {"params": rest, "regulariser": None},
        ]
        return [g for g in groups if g["params"]]


def _once(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Without the repetitions of a weight that layers share."""
    return list({id(w): w for w in weights}.values())


@dataclass(frozen=True, kw_only=True)
class LinBregSpec(SparseOptimizerSpec):
    """Linearised Bregman iterations: training that starts sparse and adds weights (defenses.LinBreg).

    Args:
        lr: tau, the learning rate, > 0.
        weight_decay: L2 coefficient.
        delta: weight of the regulariser against ||theta||^2 / (2 delta), > 0.
        momentum: beta in [0, 1); the paper's is 0.9.
    """

    delta: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_delta(self.delta)
        check(0 <= self.momentum < 1, "momentum", "a number in [0, 1)", self.momentum)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for all parameters of a network."""
        return defenses.LinBreg(
            self.groups(model),
            lr=self.lr,
            lam=self.lam,
            delta=self.delta,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True, kw_only=True)
class AdaBregSpec(SparseOptimizerSpec):
    """Bregman iterations with Adam's step (defenses.AdaBreg).

    Args:
        lr: tau, the learning rate, > 0.
        weight_decay: L2 coefficient.
        delta: weight of the regulariser against ||theta||^2 / (2 delta), > 0.
        beta1, beta2: decay of the moments, in [0, 1).
    """

    lr: float = 1e-3
    delta: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_delta(self.delta)
        check(0 <= self.beta1 < 1, "beta1", "a number in [0, 1)", self.beta1)
        check(0 <= self.beta2 < 1, "beta2", "a number in [0, 1)", self.beta2)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for all parameters of a network."""
        return defenses.AdaBreg(
            self.groups(model),
            lr=self.lr,
            lam=self.lam,
            delta=self.delta,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True, kw_only=True)
class ProxSGDSpec(SparseOptimizerSpec):
    """Stochastic proximal gradient descent (defenses.ProxSGD).

    Args:
        lr: tau, the learning rate, > 0.
        weight_decay: L2 coefficient.
        momentum: in [0, 1).
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.momentum < 1, "momentum", "a number in [0, 1)", self.momentum)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for all parameters of a network."""
        return defenses.ProxSGD(
            self.groups(model),
            lr=self.lr,
            lam=self.lam,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


def _check_delta(delta: float) -> None:
    check(delta > 0 and math.isfinite(delta), "delta", "a finite number > 0", delta)
