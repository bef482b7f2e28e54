"""Minibatches of training: shuffled, augmented, and made into inputs and targets of the task."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attacks.base import GeneratorNoise, NoiseSource
from defenses.robust.draws import BatchRandom
from robustbench_sparse.data.augment import Augment
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.streams import Streams, derive
from robustbench_sparse.tasks.base import Task
from robustbench_sparse.tasks.inputs import LazyNoise
from robustbench_sparse.training.parallel import Ranks

_PART = 1024  # images that inputs are drawn for at once


class Minibatches:
    """The training part of a run, epoch by epoch.

    Args:
        task: makes inputs and targets.
        data: holds the images.
        streams: the run's; order, augmentation and inputs each have their own.
        ranks: which part of every minibatch is this process's; all of it by default.
    """

    def __init__(self, task: Task, data: PreparedData, streams: Streams, ranks: Ranks | None = None) -> None:
        self.task, self.data, self.streams = task, data, streams
        self.ranks = ranks or Ranks()
        self._kept: Tensor | None = None  # inputs of all training images, where they are drawn once

    def epoch(self, augment: Augment, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (B, C, S, S) and targets (B, ...) of one epoch; the last minibatch may be smaller."""
        noise = LazyNoise(self._noise)
        for together in self.data.shuffled(self.streams.get("data"), batch_size):
            mine = self.ranks.take(len(together))
            positions = together[mine]
            x, y = self.data.gather("train", positions)
            if self.task.redraws:
                x = augment(x, self.streams.get("augment"), len(together), mine.start)
                yield self.task.pair(x, y, noise)
            else:
                yield self._once()[positions.to(self.data.device)], x

    def _noise(self) -> NoiseSource:
        stream, part = self.streams.get("inputs"), self.ranks.part
        return GeneratorNoise(stream) if part is None else BatchRandom(stream, part=part)

    def _once(self) -> Tensor:
        """The inputs drawn once: from a stream of their own, so that a run that goes on draws the same ones."""
        if self._kept is None:
            stream = torch.Generator().manual_seed(derive(self.streams.seed, "inputs drawn once"))
            noise, parts = GeneratorNoise(stream), torch.split(torch.arange(self.data.count("train")), _PART)
            pairs = (self.task.pair(*self.data.gather("train", part), noise) for part in parts)
            self._kept = torch.cat([inputs for inputs, _ in pairs])
        return self._kept
