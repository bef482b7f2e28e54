"""RGSM, the relaxed group splitting method: channels pruned while the network trains; Dinh 4.1.1, Alg. 3."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.base import check
from defenses.base import Defense, Log, Step, conv_weights
from defenses.regularisers import REGULARISERS, group_norms

ZERO = 1e-15  # a channel of smaller l2 norm counts as zero (Dinh 4.2.3)


@dataclass(frozen=True, kw_only=True)
class RGSM(Defense):
    """Channel pruning by variable splitting: weights w are pulled towards a channel-sparse copy u.

    L_beta(w, u) = f(w) + lambda P(u) + beta/2 ||w - u||^2 (Dinh (4.1)) over the weights (out, in, k, k) of
    all 2-D convolutions, a channel being an input channel W[:, g]. Each step (Alg. 3): w <- w - eta grad f(w)
    - eta beta (w - u), the coupling with the plain learning rate and outside momentum; then u <- prox of
    (lambda/beta) P at w, by (4.4) or (4.6). Each epoch ends with w <- u; the deployed network has u for w.
    Beside an optimiser with momentum m the coupling is thus worth (1 - m) beta in terms of the gradient.

    Args:
        regulariser: P: ``group_lasso`` (sum of channel norms) or ``group_l0`` (number of non-zero channels).
        lam: lambda, the weight of P, >= 0; it needs beta > 0.
        beta: strength of the coupling, >= 0; 0 switches the splitting off.
        lam2: lambda_2, the weight of a differentiable group lasso term sum_g ||W_g||_2 in the loss, >= 0.
        include_first: the first convolution's input channels are pruned too, as in the papers' counts.
        keep_one: where the proximal map zeroes a whole layer, its largest channel is kept as it is; off, as
            published, lets the layer die.
    """

    sparsifies: ClassVar[bool] = True
    regulariser: Literal["group_lasso", "group_l0"] = "group_lasso"
    lam: float = 0.0
    beta: float = 0.0
    lam2: float = 0.0
    include_first: bool = True
    keep_one: bool = False
    _found: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        known = self.regulariser in REGULARISERS
        check(known, "regulariser", " or ".join(REGULARISERS), self.regulariser)
        for name in ("lam", "beta", "lam2"):
            value = getattr(self, name)
            check(value >= 0 and math.isfinite(value), name, "a finite number >= 0", value)
        check(self.beta > 0 or self.lam == 0, "beta", "a number > 0 where lam > 0", self.beta)

    def layers(self, model: nn.Module) -> dict[str, Tensor]:
        """The convolution weights acted upon, by parameter name."""
        weights = list(conv_weights(model).items())
        return dict(weights if self.include_first else weights[1:])

    def check(self, model: nn.Module) -> None:
        """There must be a convolution whose channels can be pruned."""
        if not self.layers(model):
            raise ValueError("rgsm: expected a network with 2-D convolutions to prune, got none")

    @torch.no_grad()
    def begin(self, s: Step) -> None:
        """u <- prox(w)."""
        self.memory.clear()
        self._found.clear()
        if self.beta > 0:
            layers = self.layers(s.model)
            factors = self._factors(list(layers.values()))
            self.memory["u"] = {name: w * f for (name, w), f in zip(layers.items(), factors, strict=True)}

    def penalty(self, s: Step) -> Tensor | None:
        """lambda_2 sum_g ||W_g||_2 over all layers, or None."""
        if self.lam2 == 0:
            return None
        return self.lam2 * _all_norms(list(self._weights(s.model).values()))[0].sum()

    @torch.no_grad()
    def before_step(self, s: Step) -> None:
        """w <- w - eta beta (w - u)."""
        if self.beta > 0:
            torch._foreach_lerp_(*self._pairs(s.model), s.lr * self.beta)

    @torch.no_grad()
    def after_step(self, s: Step) -> None:
        """u <- prox(w)."""
        if self.beta > 0:
            weights, u = self._pairs(s.model)
            for w, f, out in zip(weights, self._factors(weights), u, strict=True):
                torch.mul(w, f, out=out)

    @torch.no_grad()
    def end_epoch(self, s: Step) -> Log:
        """w <- u; log the share of zero channels."""
        if self.beta == 0:
            return {}
        weights, u = self._pairs(s.model)
        torch._foreach_copy_(weights, u)
        return {"channel_sparsity": (_all_norms(u)[0] < ZERO).double().mean().item()}

    def deploy(self, model: nn.Module) -> nn.Module:
        """A copy with u for w; the network itself where the splitting is off."""
        if "u" not in self.memory:
            return model
        deployed = copy.deepcopy(model)
        with torch.no_grad():
            for name, w in self.layers(deployed).items():
                w.copy_(self.memory["u"][name])
        return deployed

    def prox(self, w: Tensor) -> Tensor:
        """argmin_u lambda P(u) + beta/2 ||w - u||^2 for one weight (out, in, k, k)."""
        return w * self._factors([w])[0]

    def _factors(self, weights: list[Tensor]) -> list[Tensor]:
        """What the proximal map multiplies every channel by: (1, in, 1, 1) for each weight.

        Of all layers together, as a step should not cost a dozen kernels a layer; nothing waits for a device.
        """
        p = REGULARISERS[self.regulariser](group="channel")
        norms, counts = _all_norms(weights)
        factor = p.factor(norms, self.lam / self.beta)
        factors = list(factor.split_with_sizes(counts))
        if self.keep_one:
            factors = [_keep_one(*pair) for pair in zip(factors, norms.split_with_sizes(counts), strict=True)]
        return [f.view(1, -1, 1, 1) for f in factors]

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        """``layers``, looked up once a stage: a walk through the modules at every step is for nothing."""
        if self._found.get("model") is not model:
            self._found.update(model=model, layers=self.layers(model))
        weights: dict[str, Tensor] = self._found["layers"]
        return weights

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """The weights and their u, in the same order."""
        layers, u = self._weights(model), self.memory["u"]
        return list(layers.values()), [u[name] for name in layers]


def _all_norms(weights: list[Tensor]) -> tuple[Tensor, list[int]]:
    """The channels' norms of all layers in one vector, and how many each layer has."""
    norms = [group_norms(w, "channel").flatten() for w in weights]
    return torch.cat(norms), [len(n) for n in norms]


def _keep_one(factor: Tensor, norms: Tensor) -> Tensor:
    """The factors (in,) of one layer; where they leave nothing of it, 1 for its largest channel instead."""
    largest = torch.zeros_like(factor).index_fill_(0, norms.argmax(), 1)
    return torch.where((norms * factor != 0).any(), factor, largest)
