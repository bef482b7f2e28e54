"""Sparse optimizers a config can name: which regulariser acts on which layers of a network."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

import defenses
from attacks.base import LATER, check
from defenses.base import chosen_weights, prunable
from defenses.regularisers import RegulariserEntry, make_regulariser
from robustbench_sparse.config.optimizer_base import OptimizerSpec

# A weight of each kind of layer, to try a regulariser on before anything trains.
_SHAPES = {"linear": (2, 3), "conv": (2, 3, 3, 3)}


class ParameterGroup(TypedDict):
    """Parameters chosen by name, and what regularises them.

    Attributes:
        match: a pattern for their names, as in ``*skip`` or ``layers.0.*``; ``*`` and ``?`` stand for other characters.
        regulariser: a name or ``{name: ..., settings}``; null for none.
        lam: its weight, >= 0; the optimizer's own where left out.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    match: str
    regulariser: RegulariserEntry | None
    lam: NotRequired[float]


@dataclass(frozen=True, kw_only=True)
class SparseOptimizerSpec(OptimizerSpec):
    """Base of sparse optimizers' settings: what they regularise, and how much.

    Biases and batch-norm are not regularised unless ``groups`` names them.

    Args:
        lam: lambda, the regularisers' weight, >= 0.
        linear: regulariser of the weights of linear layers: a name or ``{name: ..., settings}``; null for none.
        conv: the same for convolutions.
        groups: ``[{match: "*skip", regulariser: l1, lam: 0.07}, ...]``: parameters by patterns of their names; what is
            said there takes the place of ``linear`` and ``conv``, and the first pattern that matches counts.
    """

    sparsifies: ClassVar[bool] = True
    lam: float = 0.0
    linear: RegulariserEntry | None = "l1"
    conv: RegulariserEntry | None = "l1"
    groups: tuple[ParameterGroup, ...] = field(default=(), metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.lam >= 0 and math.isfinite(self.lam), "lam", "a finite number >= 0", self.lam)
        for number, group in enumerate(self.groups):
            lam = group.get("lam", 0.0)
            if not (lam >= 0 and math.isfinite(lam)):
                raise ValueError(f"groups: {number}.lam: expected a finite number >= 0, got {lam:g}")
            if group["regulariser"] is not None:
                make_regulariser(group["regulariser"], "groups")
        for setting, shape in _SHAPES.items():
            entry = getattr(self, setting)
            if entry is None:
                continue
            regulariser = make_regulariser(entry, setting)
            try:
                regulariser.prox(torch.ones(shape), 0.1)
            except ValueError as e:
                raise ValueError(f"{setting}: {e}") from None

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """What ``groups`` names, then linear weights, convolution weights, and the rest without a regulariser.

        Raises:
            ValueError: a pattern that matches no parameter, or none that is left; or a regulariser that does not fit
                what it matches.
        """
        named = dict(model.named_parameters())  # shared ones once
        named_groups = list(self._named(named))
        taken = {id(p) for group in named_groups for p in group["params"]}
        linear = _once(chosen_weights(model, "linear").values(), taken)
        conv = _once(prunable(model).values(), taken | {id(w) for w in linear})
        taken |= {id(w) for w in (*linear, *conv)}
        rest = [p for p in named.values() if id(p) not in taken]
        groups: list[dict[str, Any]] = [
            *named_groups,
            {"params": linear, "regulariser": self.linear},
            {"params": conv, "regulariser": self.conv},
            {"params": rest, "regulariser": None},
        ]
        return [g for g in groups if g["params"]]

    def _named(self, parameters: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
        left = dict(parameters)
        for number, group in enumerate(self.groups):
            names = fnmatch.filter(left, group["match"])
            if not names:
                known = fnmatch.filter(parameters, group["match"])
                problem = "only what an earlier one matches" if known else "no parameter"
                raise ValueError(
                    f"groups: {number}.match: {group['match']!r} matches {problem}; there are: {', '.join(parameters)}"
                )
            if group["regulariser"] is not None:
                regulariser = make_regulariser(group["regulariser"], "groups")
                for name in names:
                    try:
                        regulariser.prox(torch.ones(left[name].shape, device="cpu"), 0.1)
                    except ValueError as e:
                        raise ValueError(f"groups: {number}.regulariser: {name}: {e}") from None
            lam = {"lam": group["lam"]} if "lam" in group else {}
            yield {"params": [left.pop(name) for name in names], "regulariser": group["regulariser"], **lam}


def _once(weights: Iterable[Tensor], taken: set[int]) -> list[Tensor]:
    """Those not taken yet, without the repetitions of a weight that layers share."""
    return list({id(w): w for w in weights if id(w) not in taken}.values())


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
            self.parameter_groups(model),
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
            self.parameter_groups(model),
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
            self.parameter_groups(model),
            lr=self.lr,
            lam=self.lam,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


def _check_delta(delta: float) -> None:
    check(delta > 0 and math.isfinite(delta), "delta", "a finite number > 0", delta)
