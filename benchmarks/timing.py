"""Interleaved timing: every side gets its turn in every round, so that a slow minute hits all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Side(Generic[T]):
    """One side of a comparison.

    Attributes:
        name: how the other side knows it.
        work: what is timed; gets the number of the round, for a random start of its own.
        warm_up: called once before; what it does should meet all shapes that ``work`` meets.
    """

    name: str
    work: Callable[[int], T]
    warm_up: Callable[[], object]


@dataclass
class Measured(Generic[T]):
    """What the rounds gave: seconds and results, in order."""

    seconds: list[float] = field(default_factory=list)
    results: list[T] = field(default_factory=list)

    def rate(self, amount: float) -> Spread:
        """Units per second when each round handles so many."""
        return Spread.of([amount / s for s in self.seconds])

    def per(self, amount: float = 1.0) -> Spread:
        """Seconds per unit when each round handles so many."""
        return Spread.of([s / amount for s in self.seconds])


def clock(device: torch.device) -> float:
    """Seconds, once everything given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def interleave(
    sides: Sequence[Side[T]], *, repeats: int, budget: float, device: torch.device
) -> dict[str, Measured[T]]:
    """Time the sides in turn, A B A B ..., after one warm-up of each.

    Args:
        sides: what is compared.
        repeats: rounds, fewer when time runs out; always at least one.
        budget: seconds for all of it, warm-up included; no round begins that would not fit.
        device: what is waited for before the clock is read.

    Returns:
        The measurements by the sides' names.
    """
    began = time.perf_counter()
    for side in sides:
        side.warm_up()
    measured: dict[str, Measured[T]] = {side.name: Measured() for side in sides}
    gc.collect()
    longest = 0.0
    for number in range(repeats):
        if number and time.perf_counter() - began + longest > budget:
            break
        round_began = time.perf_counter()
        for side in sides:
            start = clock(device)
            result = side.work(number)
            measured[side.name].seconds.append(clock(device) - start)
            measured[side.name].results.append(result)
        longest = max(longest, time.perf_counter() - round_began)
    return measured
