"""Our side of training, as the harness does it, and a way to let the other side have its turn in between."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks.base import Threat
from benchmarks.timing import clock
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import RunPlan
from robustbench_sparse.data import PreparedData
from robustbench_sparse.foundation.progress import Progress, Silent
from robustbench_sparse.training.trainer import Trainer

THREAT = Threat(norm="linf", eps=8 / 255)


def plan(
    model: Mapping[str, Any], train: Mapping[str, Any], defenses: Sequence[Mapping[str, Any]]
) -> RunPlan:
    """A run as a config would describe it; no validation, the last epoch's weights."""
    raw = {
        "name": "bench",
        "data": "digits",  # not read: the trainer gets its images from the row
        "threat": {"norm": THREAT.norm, "eps": THREAT.eps},
        "model": dict(model),
        "train": {"selection": "last", **train},
        "runs": {"bench": {"defenses": [dict(d) for d in defenses]}},
    }
    return resolve(raw).runs[0]


def train(
    run: RunPlan,
    data: PreparedData,
    seed: int,
    show: Progress | None = None,
    start: Callable[[nn.Module], object] | None = None,
) -> nn.Module:
    """Train with our trainer; the deployed network in the plain memory layout, in eval mode.

    Args:
        run: what to train.
        data: the images.
        seed: of all random streams.
        show: where progress goes.
        start: called with the network before its first step.

    Raises:
        RuntimeError: when training diverged.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, data, THREAT, seed, Path(folder) / "checkpoint.pt", show or Silent())
        if start is not None:
            start(trainer.model)
        trained = trainer.train()
    if trained.diverged:
        raise RuntimeError(trained.diverged)
    model = plain_layout(trainer.deployed())
    model.load_state_dict(trained.weights)
    return model.eval()


def plain_layout(model: nn.Module) -> nn.Module:
    """The network with row-major weights, as everybody's code makes them."""
    moved: nn.Module = model.to(memory_format=torch.contiguous_format)
    return moved


class Turns:
    """A progress display that times each of our epochs and calls the other side between them.

    The work at an epoch's end (saving, copying) counts to the next epoch, so that each epoch but the first has
    one such piece in it; the first, with all compiling, is the warm-up.

    Args:
        images: of one epoch.
        turn: called after each epoch with its number; its time is not ours.
        device: what is waited for before the clock is read.

    Attributes:
        seconds: time of each epoch, the warm-up first.
    """

    def __init__(self, images: int, turn: Callable[[int], object], device: torch.device) -> None:
        self._images, self._turn, self._device = images, turn, device
        self._done, self._began = 0, clock(device)
        self.seconds: list[float] = []

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Turns:
        """Training starts; building and compiling before it belong to the warm-up."""
        return self

    def advance(self, amount: int, info: str = "") -> None:
        """So many more images have been trained on."""
        self._done += amount
        if self._done == self._images:
            self._done = 0
            self.seconds.append(clock(self._device) - self._began)
            self._turn(len(self.seconds) - 1)
            self._began = clock(self._device)

    def close(self) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
