"""Which weights are pruned: exact shares, and zeros that stay zero while the network trains on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from defenses.base import Defense, Step


def share_of(percent: float, n: int) -> int:
    """How many of n a percentage in [0, 100] is, rounded to the nearest whole number."""
    return round(percent / 100 * n)


def smallest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Mark the ``count`` smallest of all scores together.

    Exactly as many, also where scores are equal: of those the first ones are taken. A threshold would take
    all or none of them.

    Args:
        scores: tensors of any shape, of one type.
        count: how many, in [0, number of scores].

    Returns:
        A bool tensor for each tensor of scores, shaped like it.
    """
    flat = torch.cat([s.detach().flatten() for s in scores])
    if count == 0:
        return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    # Selected, not sorted: of 11 million weights, on a CPU, that takes a third of the time.
    bound = flat.kthvalue(count).values
    below, equal = flat < bound, flat == bound
    chosen = below | (equal & (equal.cumsum(0) <= count - below.sum()))
    parts = chosen.split_with_sizes([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


def largest(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` largest scores of one tensor: exactly as many, of equals the first ones; bool, its shape."""
    return smallest([-scores], count)[0]


@dataclass(frozen=True, kw_only=True)
class Masked(Defense):
    """Base of what holds zeros: ``keep`` is called once they are chosen, and from then on they stay.

    Held after every step of any optimizer, one that computes the weights afresh from variables of its own
    included. Their gradients are held at 0, too: momentum and mirror variables of a pruned weight would pile up
    and, where a regulariser couples the weights of a group, weigh on those that are left.

    Attributes:
        memory: ``kept``: bool tensors by parameter name, False where the parameter is held at 0.
    """

    sparsifies: ClassVar[bool] = True
    _found: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def begin(self, s: Step) -> None:
        """Nothing is held yet."""
        self.memory.clear()
        self._found.clear()

    @torch.no_grad()
    def draw_anew(self, s: Step) -> None:
        """Forget what was learned: parameters and batch-norm statistics of a fresh network, from ``s.generator``.

        Raises:
            ValueError: where the loop cannot make such a network.
        """
        if s.fresh is None:
            raise ValueError(
                "reinitialise: expected a loop that can make the network anew (Step.fresh), got none"
            )
        s.model.load_state_dict(s.fresh(s.generator).state_dict())

    def before_step(self, s: Step) -> None:
        """Gradients of what is held are 0."""
        if "kept" in self.memory:
            weights, factors = self._pairs(s.model)
            alive = [(w.grad, f) for w, f in zip(weights, factors, strict=True) if w.grad is not None]
            if alive:
                torch._foreach_mul_([g for g, _ in alive], [f for _, f in alive])

    @torch.no_grad()
    def after_step(self, s: Step) -> None:
        """What is held is 0 again."""
        if "kept" in self.memory:
            torch._foreach_mul_(*self._pairs(s.model))

    def deploy(self, model: nn.Module) -> nn.Module:
        """A copy with zeros where they are held; the network itself where nothing is."""
        return masked(model, self.memory["kept"]) if "kept" in self.memory else model

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        super().load_state_dict(state)
        self._found.clear()

    @torch.no_grad()
    def keep(self, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        """Zero the network where ``kept`` is False, and hold that from now on; nothing where all is kept."""
        self._found.clear()
        if any(not bool(k.all()) for k in kept.values()):
            self.memory["kept"] = dict(kept)
            torch._foreach_mul_(*self._pairs(model))

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters, and the factors 0 and 1 laid out like them, as one kernel for all of them needs it."""
        if self._found.get("model") is not model:
            own = dict(model.named_parameters())
            weights = [own[name] for name in self.memory["kept"]]
            factors = [
                torch.empty_like(w).copy_(k)
                for w, k in zip(weights, self.memory["kept"].values(), strict=True)
            ]
            self._found.update(model=model, weights=weights, factors=factors)
        return self._found["weights"], self._found["factors"]


@torch.no_grad()
def masked(model: nn.Module, kept: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network that is zero where ``kept``, by parameter name, is False."""
    copied = copy.deepcopy(model)
    for name, k in kept.items():
        copied.get_parameter(name).mul_(k)
    return copied


def largest_last(scores: Sequence[Tensor]) -> list[Tensor]:
    """Scores (n,) of several layers, with the largest of each (the first of equals) made infinite."""
    return [s.index_fill(0, s.argmax(), torch.inf) for s in scores]
