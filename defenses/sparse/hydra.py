"""HYDRA: weights are frozen and importance scores learned under the robust loss; Sehwag et al. 2020.

https://arxiv.org/abs/2002.10509
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.base import check
from defenses.base import LAYERS, Asked, Layers, Log, Step, chosen_weights
from defenses.sparse.masks import Masked, share_of, smallest
from defenses.sparse.sparse_optimizer import SparseOptimizer

Tensors = list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Hydra(Masked):
    """Pruning by scores learned under the loss of training: pretrain, search, fine-tune.

    The stages before its first one pretrain. In that first one the weights w stay as they are and scores s are trained:
    min_s L(w * M(s)), where M(s) is 1 at the k largest |s| and 0 elsewhere. Backwards, M is taken for |s|, so that
    dL/ds = dL/d(w * M) * w * sign(s). Scores start at sqrt(6 / fan_in) * w / max|w|, layer by layer. In the stages
    after it the mask is held and the weights that it leaves are fine-tuned.

    During the search the optimizer steps on the scores, with its momentum and its weight decay. Biases are frozen, too;
    batch-norm layers go on learning and keep their statistics, as in the published code.

    Args:
        sparsity: share of the weights to prune in percent, in [0, 100); 0 switches everything off.
        scope: ``layer`` prunes this share of every layer, as published; ``global`` of all layers together.
        layers: ``conv``, ``linear`` or ``all``: the weights that have scores.
        freeze_norms: batch-norm scales and shifts are frozen during the search; their statistics never are.

    Attributes:
        memory: during the search ``scores`` and ``weights`` by parameter name; afterwards ``kept``.
    """

    owns_mask: ClassVar[bool] = True
    sparsity: float = 0.0
    scope: Literal["layer", "global"] = "layer"
    layers: Layers = "all"
    freeze_norms: bool = False

    def __post_init__(self) -> None:
        check(0 <= self.sparsity < 100, "sparsity", "a percentage in [0, 100)", self.sparsity)
        check(self.scope in ("layer", "global"), "scope", "'layer' or 'global'", self.scope)
        check(self.layers in LAYERS, "layers", " or ".join(LAYERS), self.layers)

    def check(self, model: nn.Module) -> None:
        """There must be weights of the kind to prune."""
        if self.sparsity > 0 and not chosen_weights(model, self.layers):
            raise ValueError(
                f"layers: expected a network with such weights to prune, got none of {self.layers!r}"
            )

    def check_stage(self, s: Step) -> None:
        """There must be a stage that pretrains, and an optimizer that can step on scores."""
        if self.sparsity == 0:
            return
        expected = "a stage of pretraining before its own, such as stages: [1, 2] of three"
        check(s.stage > 0, "stages", expected, f"stage {s.stage}")
        name = type(s.optimizer).__name__
        fine = not isinstance(s.optimizer, SparseOptimizer)
        check(fine, "optimizer", "one without a regulariser of its own, which would weigh on scores", name)

    def asked(self, model: nn.Module) -> Asked | None:
        """The sparsity, as whole weights allow it."""
        if self.sparsity == 0:
            return None
        weights = chosen_weights(model, self.layers)
        sizes = [w.numel() for w in weights.values()]
        percent = 100 * sum(self._counts(sizes)) / sum(sizes)
        return Asked(percent=percent, names=tuple(weights))

    @torch.no_grad()
    def begin(self, s: Step) -> None:
        """Give the weights scores, in the first stage; hold what the search has found, in those after it."""
        if self.sparsity == 0 or not self.memory:
            super().begin(s)
            if self.sparsity > 0:
                weights = {k: w.detach().clone() for k, w in chosen_weights(s.model, self.layers).items()}
                self.memory["weights"] = weights
                self.memory["scores"] = {name: initial_scores(w) for name, w in weights.items()}
                self._apply(s.model)
            return
        self._found.clear()
        if self.searching:
            names, masks = list(self.memory["scores"]), self.masks(list(self.memory["scores"].values()))
            self.memory.clear()
            self.keep(s.model, dict(zip(names, masks, strict=True)))

    @property
    def searching(self) -> bool:
        """Whether scores are being trained."""
        return "scores" in self.memory

    def masks(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Bool tensors shaped like the scores: True at the largest |s|, as many as are to be left."""
        sizes = [a.abs() for a in scores]
        counts = self._counts([a.numel() for a in sizes])
        if self.scope == "global":
            return [~p for p in smallest(sizes, counts[0])]
        return [~smallest([a], count)[0] for a, count in zip(sizes, counts, strict=True)]

    def score_gradients(self, gradients: Sequence[Tensor], scores: Sequence[Tensor]) -> list[Tensor]:
        """dL/ds = dL/d(w * M) * w * sign(s), from the gradients of the network's weights."""
        frozen = list(self.memory["weights"].values())
        signs = torch._foreach_sign(list(scores))
        return list(torch._foreach_mul(torch._foreach_mul(list(gradients), frozen), signs))

    def before_step(self, s: Step) -> None:
        """While searching, gradients become those of the scores, and the optimizer is given scores to step on."""
        if not self.searching:
            super().before_step(s)
            return
        assert s.optimizer is not None
        weights = self.weights_of(s.model)
        scores = list(self.memory["scores"].values())
        for p in self._frozen(s.model):
            p.grad = None  # neither weight decay nor momentum moves it
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        for w, g in zip(weights, self.score_gradients(gradients, self.points(scores)), strict=True):
            w.grad = g
        # Within the optimizer's step alone: whatever looks at the network meanwhile sees weights.
        self._found["handles"] = [
            s.optimizer.register_step_pre_hook(lambda *_: self._give(s.model)),
            s.optimizer.register_step_post_hook(lambda *_: self._take(s.model)),
        ]

    @torch.no_grad()
    def after_step(self, s: Step) -> None:
        """What is held is 0 again; while searching it is so by itself."""
        if not self.searching:
            super().after_step(s)
            return
        for handle in self._found.pop("handles", ()):
            handle.remove()

    def end_epoch(self, s: Step) -> Log:
        """While searching, log how much of the first mask is still in use, in percent of the weights it left."""
        if not self.searching:
            return {}
        frozen = self.memory["weights"].values()
        first = self.masks([initial_scores(w) for w in frozen])
        now = self.masks(list(self.memory["scores"].values()))
        both = sum(int((a & b).sum()) for a, b in zip(first, now, strict=True))
        return {"first_mask": 100 * both / max(sum(int(a.sum()) for a in first), 1)}

    def points(self, scores: Tensors) -> Tensors:
        """Where in the space of scores this step's gradients were taken."""
        return scores

    def weights_of(self, model: nn.Module) -> list[Tensor]:
        """The parameters that have scores."""
        if self._found.get("searched") is not model:
            own = dict(model.named_parameters())
            weights = [own[name] for name in self.memory["scores"]]
            self._found.update(searched=model, weights_searched=weights)
        found: list[Tensor] = self._found["weights_searched"]
        return found

    @torch.no_grad()
    def put(self, model: nn.Module, scores: Sequence[Tensor]) -> None:
        """Give the network the weights w * M(s)."""
        frozen = list(self.memory["weights"].values())
        masks = [m.to(w.dtype) for m, w in zip(self.masks(scores), frozen, strict=True)]
        torch._foreach_copy_(self.weights_of(model), torch._foreach_mul(frozen, masks))

    def _apply(self, model: nn.Module) -> None:
        self.put(model, list(self.memory["scores"].values()))

    @torch.no_grad()
    def _give(self, model: nn.Module) -> None:
        """The optimizer is about to step: its parameters are the scores."""
        torch._foreach_copy_(self.weights_of(model), list(self.memory["scores"].values()))

    @torch.no_grad()
    def _take(self, model: nn.Module) -> None:
        """The optimizer has stepped: its parameters are the new scores."""
        torch._foreach_copy_(list(self.memory["scores"].values()), self.weights_of(model))
        self._apply(model)

    def _frozen(self, model: nn.Module) -> Tensors:
        """Parameters that do not move during the search."""
        norms = {
            id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)
        }
        learning = {id(w) for w in self.weights_of(model)} | (set() if self.freeze_norms else norms)
        return [p for p in model.parameters() if id(p) not in learning]

    def _counts(self, sizes: Sequence[int]) -> list[int]:
        """Zeros of all layers together, or of each."""
        sizes = [sum(sizes)] if self.scope == "global" else sizes
        return [share_of(self.sparsity, n) for n in sizes]


def initial_scores(weight: Tensor) -> Tensor:
    """sqrt(6 / fan_in) * w / max|w| for the weight W (out, in, ...) of one layer."""
    scale = math.sqrt(6 / weight[0].numel())
    scores: Tensor = scale * weight / weight.abs().amax().clamp_min(torch.finfo(weight.dtype).tiny)
    return scores
