"""Magnitude pruning, at once or in rounds, with fine-tuning or rewinding between them.

Han et al. 2015, https://arxiv.org/abs/1506.02626; rewinding: Frankle and Carbin 2019,
https://arxiv.org/abs/1803.03635.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.base import check
from defenses.base import KINDS, Asked, Kind, Layers, Log, Step, chosen_weights
from defenses.regularisers import group_means
from defenses.sparse.masks import Masked, share_of, smallest


@dataclass(frozen=True, kw_only=True)
class MagnitudePrune(Masked):
    """The smallest weights are set to zero and held there, while the others are trained on.

    After round r of R the share (1 - sparsity)^(r/R) of the weights is left, so that every round takes the same
    share of what there was (Frankle and Carbin, section 2); the last one meets the sparsity exactly. A weight
    once pruned stays pruned. The network is judged with the zeros that it has in that epoch: where there are
    several rounds, ``select_after`` of the stage leaves out the epochs before the last one.

    Args:
        sparsity: share of the weights to prune in percent, in [0, 100); 0 prunes none.
        group: what is pruned together: a single ``weight``, or in convolutions a ``kernel`` W[o, i] or a ``channel``
            W[:, i], or a ``row`` W[o]; groups of n weights are ranked by ||w_g||_2 / sqrt(n).
        scope: ``global`` ranks all weights together, ``layer`` those of each layer, all by the same share.
        layers: ``conv``, ``linear`` or ``all``: the weights pruned.
        rounds: pruned at once (1) or in so many steps.
        every: epochs from one round to the next, >= 1.
        start: epochs trained before the first round; 0 prunes when the stage begins.
        rewind: ``start`` puts all parameters, batch-norm statistics and the optimizer back to what they were when
            the stage began, after every round, so that what is left is trained anew (the lottery ticket);
            ``none`` fine-tunes. The learning rate goes on as scheduled.
    """

    sparsity: float = 0.0
    group: Kind = "weight"
    scope: Literal["global", "layer"] = "global"
    layers: Layers = "all"
    rounds: int = 1
    every: int = 1
    start: int = 0
    rewind: Literal["none", "start"] = "none"

    def __post_init__(self) -> None:
        check(0 <= self.sparsity < 100, "sparsity", "a percentage in [0, 100)", self.sparsity)
        check(self.scope in ("global", "layer"), "scope", "'global' or 'layer'", self.scope)
        check(self.layers in ("conv", "linear", "all"), "layers", "'conv', 'linear' or 'all'", self.layers)
        check(self.group in KINDS, "group", " or ".join(KINDS), self.group)
        fits = self.layers == "conv" or self.group in ("weight", "row")
        check(fits, "group", "'weight' or 'row', or layers: conv beside it", self.group)
        check(self.rounds >= 1, "rounds", "an integer >= 1", self.rounds)
        check(self.every >= 1, "every", "an integer >= 1", self.every)
        check(self.start >= 0, "start", "an integer >= 0", self.start)
        check(self.rewind in ("none", "start"), "rewind", "'none' or 'start'", self.rewind)

    def check(self, model: nn.Module) -> None:
        """There must be weights of the kind to prune."""
        if self.sparsity > 0 and not chosen_weights(model, self.layers):
            raise ValueError(
                f"layers: expected a network with such weights to prune, got none of {self.layers!r}"
            )

    def check_stage(self, s: Step) -> None:
        """The stage must be long enough for all rounds, and an epoch after the last one."""
        last = self.start + (self.rounds - 1) * self.every
        expected = f"the last round (after {last} epochs) before the stage's last epoch"
        check(self.sparsity == 0 or last < s.epochs, "rounds", expected, f"a stage of {s.epochs} epochs")

    def asked(self, model: nn.Module) -> Asked | None:
        """The sparsity, as whole weights or groups allow it."""
        if self.sparsity == 0:
            return None
        weights = chosen_weights(model, self.layers)
        scores = [self._scores(w.detach()) for w in weights.values()]
        percent = 100 * sum(self._counts(scores, self.rounds)) / sum(a.numel() for a in scores)
        return Asked(kind=self.group, percent=percent, names=tuple(weights), binding=True)

    @torch.no_grad()
    def begin(self, s: Step) -> None:
        """Remember what is rewound to; prune, where that is due.

        Raises:
            ValueError: when the last round comes too late for the stage.
        """
        super().begin(s)
        if self.sparsity == 0:
            return
        self.check_stage(s)
        if self.rewind == "start":
            self.memory["start"] = {k: v.clone() for k, v in s.model.state_dict().items()}
        self._prune(s, 0)

    @torch.no_grad()
    def end_epoch(self, s: Step) -> Log:
        """Prune, where that is due; log the share pruned so far in percent, as this epoch had it."""
        if self.sparsity == 0:
            return {}
        log = {"pruned": self.memory.get("pruned", 0.0)}
        self._prune(s, s.epoch + 1)
        return log

    def _prune(self, s: Step, after: int) -> None:
        """The round due after so many epochs, if there is one."""
        number, rest = divmod(after - self.start, self.every)
        if rest or not 0 <= number < self.rounds:
            return
        weights = chosen_weights(s.model, self.layers)
        kept = self.memory.get("kept")
        scores = [self._scores(w.detach()) for w in weights.values()]
        if kept is not None:  # before any weight that is left, were it zero
            gone = [self._scores(kept[name].float()) == 0 for name in weights]
            scores = [a.masked_fill(g, -1) for a, g in zip(scores, gone, strict=True)]
        counts = self._counts(scores, number + 1)
        if self.scope == "global":
            pruned = smallest(scores, counts[0])
        else:
            pruned = [smallest([a], count)[0] for a, count in zip(scores, counts, strict=True)]
        if self.rewind == "start" and after > 0:
            s.model.load_state_dict(self.memory["start"])
            assert s.optimizer is not None
            s.optimizer.state.clear()
        self.keep(
            s.model,
            {name: ~p.expand_as(w) for (name, w), p in zip(weights.items(), pruned, strict=True)},
        )
        if number + 1 == self.rounds:  # no round to come that would rewind
            self.memory.pop("start", None)
        self.memory["pruned"] = 100 * sum(counts) / sum(a.numel() for a in scores)

    def _scores(self, w: Tensor) -> Tensor:
        """|w|, or the groups' root mean squares, which broadcast against the weight."""
        return w.abs() if self.group == "weight" else group_means(w, self.group)

    def _counts(self, weights: list[Tensor], rounds: int) -> list[int]:
        """Zeros after so many rounds: of all layers together, or of each."""
        left = 1 - self.sparsity / 100
        percent = self.sparsity if rounds == self.rounds else 100 * (1 - left ** (rounds / self.rounds))
        sizes = [w.numel() for w in weights]
        return [share_of(percent, n) for n in ([sum(sizes)] if self.scope == "global" else sizes)]
