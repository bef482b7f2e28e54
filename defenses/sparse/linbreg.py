"""LinBreg, linearised Bregman iterations; Bungert, Roith, Tenbrinck & Burger 2022, https://arxiv.org/abs/2105.04319."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.base import check
from defenses.regularisers import Regulariser, RegulariserEntry
from defenses.sparse.sparse_optimizer import BregmanOptimizer, Group, Params, Tensors


class LinBreg(BregmanOptimizer):
    """Sparse training that starts from few weights and adds those that matter (Algorithms 1 and 2).

    v <- v - lr g; theta <- prox_{delta lam R}(delta v), from v = lam dR(theta) + theta / delta. With momentum
    beta: m <- beta m + (1 - beta) lr g; v <- v - m. A weight stays 0 until its v leaves [-lam, lam], as it
    does for l1, so the iteration runs from sparse to dense: begin sparse (``sparse_init``).

    Where R = 0 it is torch.optim.SGD with learning rate delta lr; with momentum beta and a constant rate that
    SGD has learning rate delta lr (1 - beta) and momentum beta. The loss falls monotonically for lr <=
    2 / (delta L), L the Lipschitz constant of its gradient (Theorem 2).

    Args:
        params: as for every optimizer of torch.
        lr: tau, the learning rate, >= 0.
        lam: lambda, the weight of R, >= 0.
        regulariser: R: an object, its name or its entry; None for no regularisation.
        delta: weight of R against ||theta||^2 / (2 delta), > 0.
        momentum: beta in [0, 1); the paper's is 0.9.
        weight_decay: L2 coefficient, added to the gradient, >= 0.
        foreach: update all parameters at once; off takes them one by one.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        lam: float = 0.0,
        regulariser: RegulariserEntry | Regulariser | None = "l1",
        delta: float = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        foreach: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "lam": lam,
            "regulariser": regulariser,
            "delta": delta,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        super()._check(group)
        check(0 <= group["momentum"] < 1, "momentum", "a number in [0, 1)", group["momentum"])

    def _update(self, ps: Tensors, gs: Tensors, group: Group) -> None:
        lr, beta, delta = group["lr"], group["momentum"], group["delta"]
        zs = self._points(ps, group)
        if beta > 0:
            ms = self._kept(ps, "momentum_buffer")
            torch._foreach_mul_(ms, beta)
            torch._foreach_add_(ms, gs, alpha=(1 - beta) * lr)
            torch._foreach_add_(zs, ms, alpha=-delta)
        else:
            torch._foreach_add_(zs, gs, alpha=-delta * lr)
        self._prox(zs, ps, group)

    def _update_one(self, p: Tensor, g: Tensor, group: Group) -> None:
        z, m, beta = self._points([p], group)[0], group["lr"] * g, group["momentum"]
        if beta > 0:
            kept = self._kept([p], "momentum_buffer")[0]
            m = kept.copy_(beta * kept + (1 - beta) * m)
        z.sub_(group["delta"] * m)
        self._prox_one(z, p, group)
