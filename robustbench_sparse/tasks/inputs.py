"""The inputs that every run is validated and judged on, and noise that is asked for only where a task draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from attacks.base import NoiseSource, SampleRandom
from robustbench_sparse.data.prepared import PreparedData, Split
from robustbench_sparse.tasks.base import Task

INPUT_SEED = 20_003  # a constant, not the run's: all runs see the same inputs


class LazyNoise:
    """A source of noise that is made when something is drawn: a task that draws nothing costs nothing.

    Args:
        make: makes the source.
    """

    def __init__(self, make: Callable[[], NoiseSource]) -> None:
        self._make = make
        self._source: NoiseSource | None = None

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) with the shape, type and device of ``like``."""
        if self._source is None:
            self._source = self._make()
        return self._source.normal(like)


def fixed_pairs(
    task: Task, data: PreparedData, split: Split, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A part in order: inputs and targets as every run sees them, and the images' positions in the data set (B,)."""
    part = "test" if split == "test" else "train"  # the one that a validation image's position counts in

    def source(index: Tensor) -> NoiseSource:
        return SampleRandom.for_images(INPUT_SEED, part, index.tolist())

    for x, y, index in data.ordered(split, batch_size):
        inputs, targets = task.pair(x, y, LazyNoise(lambda index=index: source(index)))  # type: ignore[misc]
        yield inputs, targets, index
