"""Network slimming: batch-norm scales made sparse, their channels pruned.

Liu et al. 2017, https://arxiv.org/abs/1708.06519.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import LATER, check
from defenses.base import Asked, Step
from defenses.sparse.consumers import Output, kept_without, outputs_of
from defenses.sparse.masks import Masked, largest_last, share_of, smallest


@dataclass(frozen=True, kw_only=True)
class NetworkSlimming(Masked):
    """lambda sum |gamma| over all batch-norm scales in the loss; channels of small |gamma| are pruned.

    The loss is Liu et al., (1). Pruning, when the stage begins, ranks the scales of all layers together. A channel
    takes with it its scale gamma and shift beta, what reads it in the next layers, and the filter it comes from
    where that feeds this batch-norm layer alone; all of it is held at 0 while the stage trains. In a
    pre-activation ResNet the first batch-norm layer of a block thus chooses among the channels of the skip
    connection, which live on, as in the paper's section 3. Usually two entries, one with ``lam`` in the first
    stage, one with ``sparsity`` in the second.

    Args:
        lam: lambda, >= 0; 0 leaves the loss as it is.
        sparsity: share of the scales to prune in percent, in [0, 100); 0 prunes none.
        keep_one: the largest scale of a layer is never pruned, as a layer without channels cuts the network in two.
            The method as published lets it happen.
        reinitialise: after pruning all that is left, batch-norm included, is drawn anew as the network's own
            initialisation draws it, so that the stage trains from scratch (Liu et al. 2019,
            https://arxiv.org/abs/1810.05270); false retrains the weights that are there.
    """

    lam: float = 0.0
    sparsity: float = 0.0
    keep_one: bool = True
    reinitialise: bool = field(default=False, metadata=LATER)
    _scales: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check(0 <= self.lam < float("inf"), "lam", "a finite number >= 0", self.lam)
        check(0 <= self.sparsity < 100, "sparsity", "a percentage in [0, 100)", self.sparsity)
        prunes = self.sparsity > 0 or not self.reinitialise
        check(prunes, "reinitialise", "false, or a sparsity > 0 beside it", self.reinitialise)

    def check(self, model: nn.Module) -> None:
        """There must be batch-norm layers with scales, and for pruning, ones inside the network."""
        if self.lam > 0 and not _gammas(model):
            raise ValueError("network_slimming: expected a network with batch-norm layers, got none")
        if self.sparsity > 0 and not self.layers(model):
            raise ValueError(
                "network_slimming: expected a network with batch-norm layers between its layers, as its forward "
                "pass can be traced, got none"
            )

    def layers(self, model: nn.Module) -> dict[str, Tensor]:
        """The scales gamma (channels,) that may be pruned, by name of the batch-norm layer."""
        return _prunable(model, outputs_of(model))

    def asked(self, model: nn.Module) -> Asked | None:
        """The share of zero rows, where every scale has a filter of its own; else nothing counts them."""
        if self.sparsity == 0:
            return None
        outputs = outputs_of(model)
        gammas, before = _prunable(model, outputs), _filters(outputs)
        if not gammas or any(norm not in before for norm in gammas):
            return None
        n = sum(g.numel() for g in gammas.values())
        percent = 100 * self._count(gammas) / n
        return Asked(
            kind="row",
            percent=percent,
            names=tuple(f"{before[norm]}.weight" for norm in gammas),
            binding=True,
        )

    @torch.no_grad()
    def begin(self, s: Step) -> None:
        """Prune, and draw anew what is left where that is asked for."""
        super().begin(s)
        self._scales.clear()
        if self.sparsity == 0:
            return
        outputs = outputs_of(s.model)
        gammas = _prunable(s.model, outputs)
        sizes = [g.detach().abs() for g in gammas.values()]
        dead = dict(
            zip(
                gammas,
                smallest(largest_last(sizes) if self.keep_one else sizes, self._count(gammas)),
                strict=True,
            )
        )
        dead |= {layer: dead[norm] for norm, layer in _filters(outputs).items() if norm in dead}
        kept = kept_without(s.model, outputs, dead)
        if self.reinitialise:
            self.draw_anew(s)
        self.keep(s.model, kept)

    def penalty(self, s: Step) -> Tensor | None:
        """lambda sum |gamma|, or None."""
        if self.lam == 0:
            return None
        if self._scales.get("model") is not s.model:
            self._scales.update(model=s.model, gammas=_gammas(s.model))
        total: Tensor = self.lam * torch.cat(self._scales["gammas"]).abs().sum()
        return total

    def _count(self, gammas: dict[str, Tensor]) -> int:
        """Scales to prune."""
        n = sum(g.numel() for g in gammas.values())
        return min(share_of(self.sparsity, n), n - len(gammas) * self.keep_one)


def _gammas(model: nn.Module) -> list[Tensor]:
    """The scales of all batch-norm layers."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [m.weight for m in norms if m.weight is not None]


def _prunable(model: nn.Module, outputs: dict[str, Output]) -> dict[str, Tensor]:
    """The scales by name of the batch-norm layer, of those between layers: the logits are no channels to prune."""
    norms = {name: model.get_submodule(name) for name, out in outputs.items() if not out.unknown}
    return {
        name: m.weight
        for name, m in norms.items()
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.weight is not None
    }


def _filters(outputs: dict[str, Output]) -> dict[str, str]:
    """Batch-norm layer -> the layer that feeds it and nothing else."""
    return {out.norms[0]: name for name, out in outputs.items() if len(out.norms) == 1 and not out.bare}
