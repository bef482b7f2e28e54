"""The layer-wise Lipschitz bound as a penalty: what CLIP is compared with; Roith (1.4) in (1.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.base import check
from defenses.base import Log, Step, prunable
from defenses.robust.controller import Controlled
from defenses.robust.draws import BatchRandom


@dataclass(frozen=True, kw_only=True)
class SpectralPenalty(Controlled):
    """Penalty lambda * prod_l ||W_l||_2: the product of the layers' spectral norms.

    W_l are the weights of all convolutions and linear layers; a convolution counts as the matrix
    (out, in * k * k), the customary stand-in, whose norm is not that of the operator (at stride 1 the
    operator's is at most k times it). For a chain of linear layers and 1-Lipschitz activations the product
    bounds the Lipschitz constant, generously: |x| as a ReLU network has 1 where the product is 2 (Roith,
    example 1.7).
    Skip connections and batch-norm scales are not in it, and an ensemble's members all multiply.

    Further settings (``lam``, ``target_accuracy``, ``increment``, ``warm_up``, ``cooldown``, ``signal``) are
    those of :class:`defenses.robust.controller.Controlled`.

    Args:
        power_iterations: power iterations per step, on vectors kept from step to step; 0 takes exact singular
            values.
    """

    power_iterations: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.power_iterations >= 0, "power_iterations", "an integer >= 0", self.power_iterations)

    def check(self, model: nn.Module) -> None:
        """A network without such layers has no product."""
        if not prunable(model):
            raise ValueError("spectral_penalty: expected convolutions or linear layers, got none")

    def penalty(self, s: Step) -> Tensor | None:
        """lambda times the product, or None while lambda is 0."""
        if self.memory["lam"] == 0:
            return None
        matrices = {name: w.flatten(1) for name, w in prunable(s.model).items()}  # (out, in * k * k)
        if self.power_iterations:
            norms = [self._power(name, w, s.generator) for name, w in matrices.items()]
        else:
            norms = [spectral_norm(w) for w in matrices.values()]
        product = torch.stack(norms).prod()
        self.memory["product"] = product.detach()
        lam: float = self.memory["lam"]
        return lam * product

    def end_epoch(self, s: Step) -> Log:
        """Steer lambda; log it and the product at the last minibatch."""
        log = super().end_epoch(s)
        if log["lam"] > 0:
            log["spectral_product"] = float(self.memory["product"])
        return log

    def _power(self, name: str, matrix: Tensor, generator: torch.Generator) -> Tensor:
        """u^T W v, from the left vector u kept in memory; its gradient is u v^T."""
        vectors: dict[str, Tensor] = self.memory.setdefault("left", {})
        with torch.no_grad():
            u = vectors.get(name)
            u = BatchRandom(generator).normal(matrix[:, 0]) if u is None else u
            for _ in range(self.power_iterations):
                v = nn.functional.normalize(matrix.mT @ u, dim=0)
                new = nn.functional.normalize(matrix @ v, dim=0)
                u = torch.where(new.any(), new, u)  # a zero matrix must not leave a zero vector behind
            vectors[name] = u
            v = nn.functional.normalize(matrix.mT @ u, dim=0)
            left = nn.functional.normalize(u, dim=0)
        return left @ (matrix @ v)


def spectral_norm(matrix: Tensor) -> Tensor:
    """Largest singular value of a matrix (out, in), exactly; a scalar."""
    norm: Tensor = torch.linalg.matrix_norm(matrix, ord=2)
    return norm
