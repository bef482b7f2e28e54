"""Variable splitting, what RVSM and RGSM share: weights w are pulled towards a sparse copy u; Dinh 3.1.3, 4.1.1."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.base import check
from defenses.base import Defense, Log, Step


@dataclass(frozen=True, kw_only=True)
class WeightsInScope(Defense):
    """Base of defenses that act on some of the weights at every step: they are looked up once a stage."""

    _found: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    @abstractmethod
    def chosen(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights acted upon, by parameter name, in the model's order."""

    def begin(self, s: Step) -> None:
        """Forget the last stage."""
        self.memory.clear()
        self._found.clear()

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        """``chosen``, looked up once a stage: a walk through the modules at every step is for nothing."""
        if self._found.get("model") is not model:
            self._found.update(model=model, weights=self.chosen(model))
        weights: dict[str, Tensor] = self._found["weights"]
        return weights

    def _with(self, name: str, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """The weights and what the memory keeps under a name for each of them, in the same order."""
        weights, kept = self._weights(model), self.memory[name]
        return list(weights.values()), [kept[key] for key in weights]


@dataclass(frozen=True, kw_only=True)
class Splitting(WeightsInScope):
    """Base of the relaxed variable splitting methods.

    L_beta(w, u) = f(w) + lambda P(u) + beta/2 ||w - u||^2 (Dinh (3.9), (4.1)). Each step (Alg. 1, 3):
    w <- w - eta grad f(w) - eta beta (w - u), the coupling with the plain learning rate and outside momentum;
    then u <- prox of (lambda/beta) P at w. Each epoch ends with w <- u; the deployed network has u for w.
    Beside an optimizer with momentum m the coupling is thus worth (1 - m) beta in terms of the gradient.

    Args:
        lam: lambda, the weight of P, >= 0; it needs beta > 0.
        beta: strength of the coupling, >= 0; 0 switches the splitting off.
    """

    sparsifies: ClassVar[bool] = True
    lam: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lam", "beta"):
            value = getattr(self, name)
            check(value >= 0 and math.isfinite(value), name, "a finite number >= 0", value)
        check(self.beta > 0 or self.lam == 0, "beta", "a number > 0 where lam > 0", self.beta)

    @abstractmethod
    def thresholded(self, weights: Sequence[Tensor], step: float) -> list[Tensor]:
        """argmin_u step * P(u) + ||w - u||^2 / 2 for all weights: new tensors, in the same order."""

    @property
    def threshold(self) -> float:
        """lambda/beta, the step of the proximal map, with the lambda of now."""
        lam: float = self.memory.get("lam", self.lam)
        return lam / self.beta

    @torch.no_grad()
    def begin(self, s: Step) -> None:
        """u <- prox(w)."""
        super().begin(s)
        if self.beta > 0:
            self._update(s.model)

    @torch.no_grad()
    def before_step(self, s: Step) -> None:
        """w <- w - eta beta (w - u)."""
        if self.beta > 0:
            torch._foreach_lerp_(*self._with("u", s.model), s.lr * self.beta)

    @torch.no_grad()
    def after_step(self, s: Step) -> None:
        """u <- prox(w)."""
        if self.beta > 0:
            self._update(s.model)

    @torch.no_grad()
    def end_epoch(self, s: Step) -> Log:
        """w <- u; log how sparse u is."""
        if self.beta == 0:
            return {}
        weights, u = self._with("u", s.model)
        torch._foreach_copy_(weights, u)
        return self._log(u)

    def deploy(self, model: nn.Module) -> nn.Module:
        """A copy with u for w; the network itself where the splitting is off."""
        if "u" not in self.memory:
            return model
        deployed = copy.deepcopy(model)
        with torch.no_grad():
            for name, w in self.chosen(deployed).items():
                w.copy_(self.memory["u"][name])
        return deployed

    def _update(self, model: nn.Module) -> None:
        weights = self._weights(model)
        u = self.thresholded(list(weights.values()), self.threshold)
        self.memory["u"] = dict(zip(weights, u, strict=True))

    def _log(self, u: list[Tensor]) -> Log:
        """Share of zero weights, in [0, 1]."""
        zeros = torch.stack([(v == 0).sum() for v in u]).sum().item()
        return {"weight_sparsity": zeros / sum(v.numel() for v in u)}
