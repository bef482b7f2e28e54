"""ProxSGD, stochastic proximal gradient descent; Bungert et al. 2022 (1.5), https://arxiv.org/abs/2105.04319."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.base import check
from defenses.regularisers import Regulariser, RegulariserEntry
from defenses.sparse.sparse_optimizer import Group, Params, SparseOptimizer, Tensors, prox_into


class ProxSGD(SparseOptimizer):
    """Minimises loss + lam R: a gradient step, then the proximal map.

    theta <- prox_{lr lam R}(theta - lr g). With momentum beta the step is inertial, theta <- prox_{lr lam R}(
    theta - lr g + beta (theta - previous theta)), which is iPiano (Ochs et al. 2014, (9)). Where R = 0 it is
    torch.optim.SGD with that momentum, to the letter; and its fixed points minimise loss + lam R for any
    beta, which they would not if the proximal map just followed SGD's step: that would weigh R by
    (1 - beta) lam. What the map takes off is taken out of the velocity too, so a weight at 0 has none.

    Args:
        params: as for every optimizer of torch.
        lr: tau, the learning rate, > 0.
        lam: lambda, the weight of R, >= 0.
        regulariser: R: an object, its name or its entry; None for no regularisation.
        momentum: beta in [0, 1).
        weight_decay: L2 coefficient, added to the gradient, >= 0.
        foreach: update all parameters at once; off takes them one by one.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        lam: float = 0.0,
        regulariser: RegulariserEntry | Regulariser | None = "l1",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        foreach: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "lam": lam,
            "regulariser": regulariser,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        super()._check(group)
        check(0 <= group["momentum"] < 1, "momentum", "a number in [0, 1)", group["momentum"])

    def _update(self, ps: Tensors, gs: Tensors, group: Group) -> None:
        lr, regulariser = group["lr"], group["regulariser"]
        steps = gs
        if group["momentum"] > 0:
            steps = self._kept(ps, "momentum_buffer")
            torch._foreach_mul_(steps, group["momentum"])
            torch._foreach_add_(steps, gs)
        if regulariser is None:
            torch._foreach_add_(ps, steps, alpha=-lr)
        elif group["momentum"] == 0:
            torch._foreach_add_(ps, steps, alpha=-lr)
            prox_into(regulariser, ps, lr * group["lam"], ps)
        else:
            ys = torch._foreach_add(ps, steps, alpha=-lr)
            prox_into(regulariser, ys, lr * group["lam"], ps)
            # velocity <- (old theta - new theta) / lr, without the cancellation
            torch._foreach_sub_(ys, ps)
            if lr > 0:
                torch._foreach_add_(steps, ys, alpha=1 / lr)

    def _update_one(self, p: Tensor, g: Tensor, group: Group) -> None:
        lr, beta, regulariser, old = group["lr"], group["momentum"], group["regulariser"], p.clone()
        velocity = self._kept([p], "momentum_buffer")[0] if beta > 0 else torch.zeros_like(p)
        y = p - lr * (g + beta * velocity)
        p.copy_(y if regulariser is None else regulariser.prox(y, lr * group["lam"]))
        if lr > 0:
            velocity.copy_((old - p) / lr)
