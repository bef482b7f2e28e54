"""The gate at work: on a copy of the network, and the first of the test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.gate import admit, examine, images_looked_at
from robustbench_sparse.gate.base import Look
from robustbench_sparse.sources.front import front_of
from robustbench_sparse.sources.preparation import UNKNOWN, Preparation


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a network before it is looked at.

    Attributes:
        preparation: what images it was made for.
        expected: the clean accuracy that the user expects, in percent.
        claim: the one that its maker states of this data.
        black_box: it has no gradient.
    """

    preparation: Preparation = UNKNOWN
    expected: float | None = None
    claim: float | None = None
    black_box: bool = False


def run_gate(
    model: nn.Module, images: Dataset, data: PreparedData, known: Known, show: Progress
) -> list[str]:
    """Look at a network, say what is found, a line for each check; names of the checks that warn.

    Args:
        model: in eval mode, on the data's device; a copy that nobody else needs.
        images: the data set.
        data: its test images, as they are judged.
        known: what is said of the network.
        show: where the lines go.

    Raises:
        UserError: nothing should be attacked; with what to do.
    """
    values = data.channels * data.size**2
    count = images_looked_at(values, data.count("test"))
    # Spread over all of them: of many data sets the first images are of one class.
    places = torch.linspace(0, data.count("test") - 1, count).round().long()
    x, y = data.gather("test", places)
    front = front_of(model)
    lines = examine(
        Look(
            model=model,
            x=x,
            y=y,
            names=tuple(images.classes),
            preparation=known.preparation,
            front=None if front is None else (front.mean, front.std),
            expected=known.expected,
            claim=known.claim,
            black_box=known.black_box,
        )
    )
    for line in lines:
        show.note(f"gate: {line.said()}")
    return admit(lines)


def as_flags(warned: Sequence[str]) -> list[str]:
    """Checks of the gate as a table's flags."""
    return [f"gate:{name}" for name in warned]
