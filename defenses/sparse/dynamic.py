"""Dynamic sparse training: the weights that are left change places while the network trains.

What ``set``, ``rigl`` and ``flying_bird`` share: a sparse start, steps at which the smallest weights are dropped and as
many others grown, zeros that are held in between.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.base import check
from defenses.base import LAYERS, Asked, Layers, Log, Step, chosen_weights
from defenses.sparse.densities import Densities, counts_of
from defenses.sparse.masks import Masked, largest, smallest

Decay = Literal["cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class Dynamic(Masked):
    """Base of dynamic sparse training.

    The first stage it acts in starts from a random mask, and every so many steps trades weights for others, layer by
    layer: of the n that are left, those with the smallest |w| are dropped, and as many grown among all others, those
    just dropped included (Evci et al. 2020, algorithm 1). A weight newly grown starts at 0 and takes part in that very
    step; one dropped and grown at once has lost nothing. The optimizer's memory of those that came or went is erased.
    In later stages in which it acts the mask is held.

    Args:
        sparsity: share of the weights held at zero in percent, in [0, 100); 0 switches everything off.
        drop: share alpha of the weights left that is traded at first, in (0, 1).
        every: steps from one trade to the next, >= 1; None means as many as an epoch has.
        end: share of the stage, T_end, after which the mask stays as it is, in (0, 1].
        decay: the share traded after t of T_end steps is alpha / 2 (1 + cos(pi t / T_end)) with ``cosine``, and
            alpha with ``constant``.
        densities: how the zeros are spread over the layers: ``erk`` (Erdos-Renyi-kernel) leaves a layer a share in
            proportion to the sum of its weight's dimensions divided by their product, ``uniform`` all the same one.
        layers: ``conv``, ``linear`` or ``all``: the weights acted upon.

    Attributes:
        memory: ``kept``, the mask by parameter name; ``left``, the weights it leaves in each layer; ``stage`` and
            ``first``, the stage in which weights are traded and the number of its first step.
    """

    owns_mask: ClassVar[bool] = True
    sparsity: float = 0.0
    drop: float = 0.3
    every: int | None = 100
    end: float = 0.75
    decay: Decay = "cosine"
    densities: Densities = "erk"
    layers: Layers = "all"

    def __post_init__(self) -> None:
        check(0 <= self.sparsity < 100, "sparsity", "a percentage in [0, 100)", self.sparsity)
        check(0 < self.drop < 1, "drop", "a share in (0, 1)", self.drop)
        check(self.every is None or self.every >= 1, "every", "an integer >= 1 or null", self.every)
        check(0 < self.end <= 1, "end", "a share in (0, 1]", self.end)
        check(self.decay in get_args(Decay), "decay", " or ".join(get_args(Decay)), self.decay)
        known = get_args(Densities)
        check(self.densities in known, "densities", " or ".join(known), self.densities)
        check(self.layers in LAYERS, "layers", " or ".join(LAYERS), self.layers)

    @abstractmethod
    def growth(self, s: Step, name: str, weight: Tensor) -> Tensor:
        """Scores shaped like a weight: of those that may grow, the largest do. The gradient is that of all weights."""

    def check(self, model: nn.Module) -> None:
        """There must be weights of the kind, and one left of them."""
        if self.sparsity > 0:
            sizes = {name: w.shape for name, w in chosen_weights(model, self.layers).items()}
            check(bool(sizes), "layers", "a network with such weights", f"none of {self.layers!r}")
            left = sum(counts_of(sizes, self.sparsity, self.densities).values())
            check(left > 0, "sparsity", "a share that leaves a weight", self.sparsity)

    def check_stage(self, s: Step) -> None:
        """The first trade must come before the mask is fixed; later stages have none."""
        if self.sparsity > 0 and s.stage == self._found.setdefault("first checked", s.stage):
            expected = f"a trade before its end, of {self.end:g} times {s.epochs * s.steps_per_epoch} steps"
            check(self._every(s) < self._end(s), "every", expected, self._every(s))

    def asked(self, model: nn.Module) -> Asked | None:
        """The sparsity, as whole weights allow it."""
        if self.sparsity == 0:
            return None
        sizes = {name: w.shape for name, w in chosen_weights(model, self.layers).items()}
        left = sum(counts_of(sizes, self.sparsity, self.densities).values())
        percent = 100 * (1 - left / sum(math.prod(shape) for shape in sizes.values()))
        return Asked(percent=percent, names=tuple(sizes), binding=True)

    @torch.no_grad()
    def begin(self, s: Step) -> None:
        """Draw the mask from this defense's stream, once."""
        self._found.clear()
        if "stage" in self.memory:  # a later stage holds what the first has found
            return
        super().begin(s)
        if self.sparsity == 0:
            return
        weights = chosen_weights(s.model, self.layers)
        shapes = {name: w.shape for name, w in weights.items()}
        left = counts_of(shapes, self.sparsity, self.densities)
        self.memory.update(stage=s.stage, first=s.step, left=left)
        drawn = {name: uniform(w, s.generator) for name, w in weights.items()}
        self.keep(s.model, {name: largest(scores, left[name]) for name, scores in drawn.items()})

    @torch.no_grad()
    def before_step(self, s: Step) -> None:
        """Trade weights, where that is due; gradients of what is held are 0."""
        share = self.share(s)
        if share > 0 and "kept" in self.memory:
            self._trade(s, share)
        super().before_step(s)

    def share(self, s: Step) -> float:
        """The share of the weights left that this step trades: 0 but for every so many."""
        if self.memory.get("stage") != s.stage:
            return 0.0
        taken = s.step - int(self.memory["first"]) + 1
        due = taken % self._every(s) == 0 and taken < self._end(s)
        return self._decayed(taken / self._end(s)) if due else 0.0

    def numbers(self, left: int, size: int, share: float) -> tuple[int, int]:
        """How many of a layer's weights are dropped and how many grown, of ``left`` out of ``size``."""
        return int(share * left), int(share * left)

    def end_epoch(self, s: Step) -> Log:
        """Log the share of the weights left in percent, and the places in use now that were not an epoch ago."""
        if "kept" not in self.memory:
            return {}
        kept = self.memory["kept"]
        before = self.memory.get("before", kept)
        new = sum(int((now & ~before[name]).sum()) for name, now in kept.items())
        self.memory["before"] = {name: k.clone() for name, k in kept.items()}
        left = sum(self.memory["left"].values())
        return {"left": 100 * left / sum(k.numel() for k in kept.values()), "moved": 100 * new / max(left, 1)}

    def _trade(self, s: Step, share: float) -> None:
        weights, kept = chosen_weights(s.model, self.layers), self.memory["kept"]
        now: dict[str, Tensor] = {}
        for name, w in weights.items():
            left = int(self.memory["left"][name])
            drop, grow = self.numbers(left, w.numel(), share)
            gone = smallest([w.detach().abs().masked_fill(~kept[name], torch.inf)], drop)[0]
            stays = kept[name] & ~gone
            grown = largest(self.growth(s, name, w).masked_fill(stays, -torch.inf), grow)
            now[name] = stays | grown
            self.memory["left"][name] = left - drop + grow
        self._forget(s, {name: kept[name] ^ k for name, k in now.items()})
        self.memory["kept"] = now
        self._found.clear()
        torch._foreach_mul_(*self._pairs(s.model))

    def _forget(self, s: Step, changed: Mapping[str, Tensor]) -> None:
        """Erase what the optimizer remembers of weights that came or went: momentum, moments, mirror variables."""
        own = dict(s.model.named_parameters())
        for name, change in changed.items():
            state = {} if s.optimizer is None else s.optimizer.state.get(own[name], {})
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == change.shape:
                    value.masked_fill_(change, 0)

    def _decayed(self, passed: float) -> float:
        return self.drop if self.decay == "constant" else self.drop / 2 * (1 + math.cos(math.pi * passed))

    def _every(self, s: Step) -> int:
        return s.steps_per_epoch if self.every is None else self.every

    def _end(self, s: Step) -> float:
        return self.end * s.epochs * s.steps_per_epoch


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """U[0, 1) shaped like a tensor, drawn where the generator lives, so that a seed means the same on every device."""
    return torch.rand(like.shape, generator=generator, device=generator.device).to(like.device)
