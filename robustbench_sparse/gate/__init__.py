"""The gate: before anything is attacked, is this the network that is meant, fed as it should be?

Ten checks on at most 500 test images, each a function and a line that says what to do. ``stop`` ends the evaluation;
what is only a warning is recorded with the row. The table of contents; ``docs/own_networks.md`` says what each looks
for.
"""

from __future__ import annotations

import torch

from robustbench_sparse.foundation.errors import UserError, cut, one_line
from robustbench_sparse.gate.answering import CLEAN, GRADIENTS, MASKS, MODE, OUTPUT
from robustbench_sparse.gate.base import IMAGES, LARGE, LARGE_IMAGES, Check, Line, Look
from robustbench_sparse.gate.feeding import COLOURS, INPUT, LABELS, NORMALISATION, SIZE

__all__ = ["CHECKS", "OFF", "Check", "Line", "Look", "admit", "examine", "images_looked_at"]

CHECKS: tuple[Check, ...] = (
    INPUT, OUTPUT, CLEAN, NORMALISATION, LABELS, COLOURS, SIZE, MODE, GRADIENTS, MASKS,
)  # fmt: skip
CAUSES = (LABELS.name, NORMALISATION.name, COLOURS.name)  # of a clean accuracy that is too low
OFF = "off"  # in a row's record, where the gate was left open


def images_looked_at(values: int, available: int) -> int:
    """How many images the gate looks at; ``values`` are those of one image."""
    return min(available, LARGE_IMAGES if values > LARGE else IMAGES)


def examine(s: Look) -> list[Line]:
    """All checks, in order; where answers have another shape than logits, those that need none."""
    lines: list[Line] = []
    with torch.random.fork_rng(devices=[]):
        for check in CHECKS:
            line = _looked(check, s)
            lines.append(line)
            if line.status == "stop" and check in (INPUT, OUTPUT):
                break
    return lines


def admit(lines: list[Line]) -> list[str]:
    """Names of the checks that warn, for the row's record.

    Raises:
        UserError: a check says stop; with what the warnings say may be the reason.
    """
    stop = next((line for line in lines if line.status == "stop"), None)
    warned = [line for line in lines if line.status == "warn"]
    if stop is None:
        return [line.check for line in warned]
    reasons = [w for cause in CAUSES for w in warned if w.check == cause]
    if reasons:
        likely = "; ".join(f"{w.check}: {w.text}" for w in reasons[:1])
        raise UserError(f"{cut(stop.text.partition(';')[0], 120)}; likely: {likely}")
    raise UserError(stop.text)


def _looked(check: Check, s: Look) -> Line:
    try:
        return check.look(s)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # the network is anybody's, and may fail in any way
        return Line(check.name, "warn", f"could not be looked at: {type(e).__name__}: {one_line(e)[:160]}")
