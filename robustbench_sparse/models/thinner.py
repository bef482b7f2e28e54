"""Thinner networks of the same kind: all widths times one number, so that as many weights are left as are wanted."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from attacks.base import check
from robustbench_sparse.models.base import ModelSpec


def thinner(spec: ModelSpec, wanted: int, count: Callable[[ModelSpec], int]) -> ModelSpec:
    """The thinner network whose number of weights is closest to the one wanted.

    Every width w of the network (its class's ``thins``) becomes round(m w), halves rounded up, but at least 1, for one
    multiplier m in [0, 1]: whole channels, in the proportions of the network as closely as whole numbers allow. Of two
    multipliers equally close the smaller one is taken.

    Args:
        spec: the network.
        wanted: the number of weights, >= 1.
        count: the weights of a network of such settings; no width may make it fall.

    Returns:
        The settings of the thinner network.

    Raises:
        ValueError: a network without widths to thin, or one that is larger even with all its widths 1.
    """
    widths = _widths_of(spec)
    check(bool(widths), "model", "a network with widths that can be made thinner", type(spec).__name__)
    # Where a width grows by one: w has k channels from m = (2k - 1) / (2w) on.
    grows = {Fraction(2 * k - 1, 2 * w) for w in widths for k in range(2, w + 1)}
    steps = sorted({Fraction(0), *grows})
    first = bisect_left(steps, wanted, key=lambda m: count(_scaled(spec, m)))
    least = count(_scaled(spec, steps[0]))
    check(first > 0 or least == wanted, "left", f"at least the {least} weights of the thinnest one", wanted)
    near = [_scaled(spec, m) for m in steps[max(first - 1, 0) : first + 1]]
    return min(near, key=lambda one: abs(count(one) - wanted))


def _widths_of(spec: ModelSpec) -> list[int]:
    out: list[int] = []
    for name in spec.thins:
        value = getattr(spec, name)
        out += value if isinstance(value, tuple) else [value]
    return out


def _scaled(spec: ModelSpec, m: Fraction) -> ModelSpec:
    def times(w: int) -> int:
        return max(1, (2 * w * m.numerator + m.denominator) // (2 * m.denominator))

    values = {name: getattr(spec, name) for name in spec.thins}
    changes: dict[str, Any] = {
        name: tuple(times(w) for w in value) if isinstance(value, tuple) else times(value)
        for name, value in values.items()
    }
    return dataclasses.replace(spec, **changes)
