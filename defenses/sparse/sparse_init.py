"""Sparse initialisation; Bungert, Roith, Tenbrinck & Burger 2022, section 4.1, https://arxiv.org/abs/2105.04319."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.base import LATER, check
from defenses.base import Defense, Step, chosen_weights, prunable
from defenses.regularisers import KEPT

Unit = Literal["weight", "row", "channel", "kernel"]
Bias = Literal["keep", "positive"]
Variance = Literal["keep", "he", "glorot"]

UNITS = {"linear": ("weight", "row", "channel"), "conv": ("weight", "row", "channel", "kernel")}
BIASES = ("keep", "positive")
VARIANCES = ("keep", "he", "glorot")


@torch.no_grad()
def sparse_init(
    model: nn.Module,
    density: float = 0.01,
    *,
    generator: torch.Generator | None = None,
    linear: Unit | None = "weight",
    conv: Unit | None = "weight",
    bias: Bias = "keep",
    variance: Variance = "keep",
    bias_scale: float = 1.0,
    scale: float = 1.0,
) -> nn.Module:
    """Make the weights of linear layers and convolutions sparse, in place, without changing their variance.

    W <- M * W / sqrt(r), M of independent Bernoulli(r) entries, one for every weight or one for every group:
    as Var(M W) = r Var(W), a layer keeps the variance of Glorot or He (section 4.1). Batch-norm stays as it
    is. At r = 2 % a weight that is kept is seven times as large as it was drawn; one that training never moves,
    as of a pixel that no image lights, stays so, and an adversary uses it (``docs/bregman_starts.md``).

    Args:
        model: any network; it is changed.
        density: r, the expected share of weights kept, in (0, 1].
        generator: where the draws come from, on any device; None is torch's global generator. Not one with the
            seed that the weights were drawn with: mask and weights would depend on each other.
        linear: what one draw decides on in a linear layer: a ``weight``, a ``row`` W[o] (a neuron) or a
            ``channel`` W[:, i] (an input); None leaves linear layers as they are.
        conv: the same for convolutions, where ``kernel`` W[o, i] is possible too, and a row is a filter.
        bias: ``keep``, or ``positive``: drawn anew from U(0, bias_scale/sqrt(n)), n the layer's inputs, as is good
            for ReLU. Zero biases would make all neurons without weights alike, and a ReLU of them never lets a
            gradient through; layers left alone keep theirs.
        variance: ``keep`` what the weights have, or draw them anew with zero mean and variance 2/n (``he``) or
            2/(n + outputs) (``glorot``) before the mask.
        bias_scale: the largest positive bias times sqrt(n), > 0. The authors' notebooks have 1 for perceptrons and
            ResNets, and 10, which is 1/sqrt(r) at r = 1 %, for the convnet.
        scale: factor on all weights of the layers acted upon, > 0; the paper's is 1, and sqrt(r) gives weights as
            large as they were drawn.

    Returns:
        ``model``.

    Raises:
        ValueError: for another value of an argument.
    """
    _check(density, linear, conv, bias, variance, bias_scale, scale)
    in_linear = {id(w) for w in chosen_weights(model, "linear").values()}
    done: set[int] = set()
    for name, w in prunable(model).items():
        unit = linear if id(w) in in_linear else conv
        if unit is None or id(w) in done:  # a shared weight would be thinned out twice
            continue
        done.add(id(w))
        inputs, outputs = w[0].numel(), w.shape[0] * w[0, 0].numel()
        if variance != "keep":
            std = math.sqrt(2 / inputs if variance == "he" else 2 / (inputs + outputs))
            w.copy_(std * _normal(w.shape, w, generator))
        if density < 1:
            shape = (
                w.shape if unit == "weight" else [n if d in KEPT[unit] else 1 for d, n in enumerate(w.shape)]
            )
            w.masked_fill_(_uniform(shape, w, generator) >= density, 0).div_(math.sqrt(density))
        if scale != 1:
            w.mul_(scale)
        b = model.get_submodule(name.rpartition(".")[0]).bias
        if bias == "positive" and isinstance(b, Tensor):
            above = 1 - _uniform(b.shape, b, generator)  # never zero
            b.copy_(bias_scale * above / math.sqrt(inputs))
    return model


def _uniform(shape: list[int] | torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """U[0, 1), drawn where the generator lives, so that a seed means the same on every device."""
    at = torch.device("cpu") if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=at).to(like)


def _normal(shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    at = torch.device("cpu") if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=at).to(like)


def _check(
    density: float,
    linear: str | None,
    conv: str | None,
    bias: str,
    variance: str,
    bias_scale: float,
    scale: float,
) -> None:
    check(0 < density <= 1, "density", "a share in (0, 1]", density)
    for name, unit in (("linear", linear), ("conv", conv)):
        check(unit is None or unit in UNITS[name], name, f"{' or '.join(UNITS[name])} or null", unit)
    check(bias in BIASES, "bias", " or ".join(BIASES), bias)
    check(variance in VARIANCES, "variance", " or ".join(VARIANCES), variance)
    check(0 < bias_scale < math.inf, "bias_scale", "a finite number > 0", bias_scale)
    check(0 < scale < math.inf, "scale", "a finite number > 0", scale)


@dataclass(frozen=True, kw_only=True)
class SparseInit(Defense):
    """Start from a sparse network: few weights, of unchanged variance, before the first stage it acts in.

    What Bregman iterations grow a network from (``linbreg``, ``adabreg``); another optimizer fills the zeros
    at once. See ``sparse_init``.

    Args:
        density: expected share of weights that are not zero, in (0, 1]; 1 keeps all of them.
        linear: what is kept or zeroed whole in linear layers: ``weight``, ``row`` or ``channel``; None leaves
            them alone.
        conv: the same for convolutions, and ``kernel``.
        bias: ``keep``, or ``positive`` random biases in the layers acted upon, convolutions included.
        variance: ``keep``, or draw the weights anew first: ``he`` or ``glorot``.
        bias_scale: positive biases are U(0, bias_scale/sqrt(n)), n the layer's inputs; > 0.
        scale: factor on the weights of the layers acted upon, > 0.
    """

    sparsifies: ClassVar[bool] = True
    density: float = 1.0
    linear: Unit | None = "weight"
    conv: Unit | None = "weight"
    bias: Bias = "keep"
    variance: Variance = "keep"
    bias_scale: float = field(default=1.0, metadata=LATER)
    scale: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        _check(self.density, self.linear, self.conv, self.bias, self.variance, self.bias_scale, self.scale)

    def begin(self, s: Step) -> None:
        """Draw the network from this defense's stream, once."""
        if self.memory.get("done"):  # a later stage goes on with what the first has trained
            return
        self.memory["done"] = True
        sparse_init(
            s.model,
            self.density,
            generator=s.generator,
            linear=self.linear,
            conv=self.conv,
            bias=self.bias,
            variance=self.variance,
            bias_scale=self.bias_scale,
            scale=self.scale,
        )
