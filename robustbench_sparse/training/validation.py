"""The validation part: how often a deployed network is right on it, and which epoch is kept for that."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attacks import IFGSM
from attacks.base import GeneratorNoise, SampleRandom, Threat, noise_from
from defenses.robust.attacking import parts
from robustbench_sparse.config.schema import Selection
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.foundation.streams import Streams
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.tasks import Classify, Task
from robustbench_sparse.tasks.inputs import fixed_pairs

ATTACK = IFGSM(steps=10, keep="last")
ATTACKED = 1000  # images at most: a choice among epochs needs no more, and must not cost what training does
_BATCH = 512


class Validation:
    """Measures deployed networks on the validation part; the images' inputs are the same in every epoch and run.

    Args:
        data: holds it; it may be empty.
        threat: the benchmark's, in which it is attacked.
        streams: the run's; noise and random starts come from ``validation``.
        task: says what is measured.
    """

    def __init__(
        self, data: PreparedData, threat: Threat, streams: Streams, task: Task | None = None
    ) -> None:
        self.data, self.threat, self.streams = data, threat, streams
        self.task = task or Classify()

    def measured(self, network: nn.Module) -> float:
        """The mean of what the task measures, such as the share classified correctly; nan without images."""
        return self._mean(network, network, self.data.count("val"), attacked=False)

    def adversarial_accuracy(self, network: nn.Module, stand_in: FastNetwork | None = None) -> float:
        """The share classified correctly under ``ATTACK``, on the first ``ATTACKED`` images.

        Args:
            network: judges.
            stand_in: a copy that is attacked in its place.
        """
        count = min(self.data.count("val"), ATTACKED)
        return self._mean(network, stand_in or network, count, attacked=True)

    def _mean(self, network: nn.Module, climbed: nn.Module, count: int, *, attacked: bool) -> float:
        noise = self.streams.get("validation")
        total, seen = 0.0, 0
        for x, y, _ in fixed_pairs(self.task, self.data, "val", _BATCH):
            x, y = x[: count - seen], y[: count - seen]
            if attacked:
                x = self._attacked(climbed, x, y, SampleRandom.spawn(noise, len(y)))
            with torch.no_grad(), noise_from(network, GeneratorNoise(noise)):
                total += self.task.measure(network(x), y).sum().item()
            seen += len(y)
            if seen >= count:
                break
        return total / seen if seen else math.nan

    def _attacked(self, network: nn.Module, x: Tensor, y: Tensor, random: SampleRandom) -> Tensor:
        """The images attacked, (B, C, H, W): part by part where that is quicker."""
        rows = torch.arange(len(y))
        return torch.cat(
            [
                ATTACK(network, x[part], y[part], self.threat, random.subset(rows[part]))
                for part in parts(network, x)
            ]
        )


def keep(
    trained: Trained,
    rule: Selection,
    after: int,
    score: float,
    facts: Mapping[str, float],
    network: nn.Module,
) -> None:
    """Keep this epoch's network where the rule chooses it over those before; the last one is kept beside it.

    Args:
        trained: what is kept.
        rule: ``last`` takes every epoch, the others one with a higher score than any before.
        after: the first epoch that may be chosen.
        score: this epoch's.
        facts: stage, epoch, accuracies and sparsities.
        network: the deployed one.
    """
    weights = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
    about = {**facts, "score": score}
    trained.last, trained.last_weights = about, weights
    best = trained.selected.get("score", -math.inf)
    if rule == "last" or (facts["epoch"] >= after and score > best):
        trained.selected, trained.weights = about, weights
