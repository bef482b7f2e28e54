"""AdaBreg, Bregman iterations with Adam's step; Bungert, Roith, Tenbrinck & Burger 2022, https://arxiv.org/abs/2105.04319."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacks.base import check
from defenses.regularisers import Regulariser, RegulariserEntry
from defenses.sparse.sparse_optimizer import BregmanOptimizer, Group, Params, Tensors


class AdaBreg(BregmanOptimizer):
    """LinBreg with Adam's bias-corrected step on v (Algorithm 3).

    m1 <- beta1 m1 + (1 - beta1) g; m2 <- beta2 m2 + (1 - beta2) g^2; v <- v - lr (m1 / (1 - beta1^k)) /
    (sqrt(m2 / (1 - beta2^k)) + eps); theta <- prox_{delta lam R}(delta v). Where R = 0 it is torch.optim.Adam
    with learning rate delta lr. (The authors' public code leaves out the correction of m1; here it is as in
    the paper.)

    Args:
        params: as for every optimizer of torch.
        lr: tau, the learning rate, >= 0.
        lam: lambda, the weight of R, >= 0.
        regulariser: R: an object, its name or its entry; None for no regularisation.
        delta: weight of R against ||theta||^2 / (2 delta), > 0.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the denominator, > 0.
        weight_decay: L2 coefficient, added to the gradient, >= 0.
        foreach: update all parameters at once; off takes them one by one.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        lam: float = 0.0,
        regulariser: RegulariserEntry | Regulariser | None = "l1",
        delta: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "lam": lam,
            "regulariser": regulariser,
            "delta": delta,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        super()._check(group)
        ok = all(0 <= b < 1 for b in group["betas"])
        check(ok, "betas", "two numbers in [0, 1)", group["betas"])
        check(group["eps"] > 0, "eps", "a number > 0", group["eps"])

    def _corrections(self, p: Tensor, group: Group) -> tuple[float, float]:
        """1 - beta1^k and sqrt(1 - beta2^k), k the number of this parameter's steps, this one included."""
        state = self.state[p]
        k = state["step"] = state.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        return 1 - beta1**k, math.sqrt(1 - beta2**k)

    def _update(self, ps: Tensors, gs: Tensors, group: Group) -> None:
        (beta1, beta2), rate = group["betas"], group["delta"] * group["lr"]
        zs = self._points(ps, group)
        m1, m2 = self._kept(ps, "exp_avg"), self._kept(ps, "exp_avg_sq")
        torch._foreach_lerp_(m1, gs, 1 - beta1)
        torch._foreach_mul_(m2, beta2)
        torch._foreach_addcmul_(m2, gs, gs, 1 - beta2)
        # (m1 / c1) / (sqrt(m2) / c2 + eps) = (c2 / c1) m1 / (sqrt(m2) + c2 eps): one pass less
        corrections = [self._corrections(p, group) for p in ps]
        below = torch._foreach_sqrt(m2)
        torch._foreach_add_(below, [c2 * group["eps"] for _, c2 in corrections])
        torch._foreach_addcdiv_(zs, m1, below, [-rate * c2 / c1 for c1, c2 in corrections])
        self._prox(zs, ps, group)

    def _update_one(self, p: Tensor, g: Tensor, group: Group) -> None:
        (beta1, beta2), z = group["betas"], self._points([p], group)[0]
        m1, m2 = self._kept([p], "exp_avg")[0], self._kept([p], "exp_avg_sq")[0]
        m1.copy_(beta1 * m1 + (1 - beta1) * g)
        m2.copy_(beta2 * m2 + (1 - beta2) * g.square())
        c1, c2 = self._corrections(p, group)
        z.sub_(group["delta"] * group["lr"] * (m1 / c1) / (m2.sqrt() / c2 + group["eps"]))
        self._prox_one(z, p, group)
