"""The state of a training after its last whole epoch, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defenses.base import Defense
from robustbench_sparse.config.optimizers import Schedule
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import write_atomically
from robustbench_sparse.foundation.streams import Streams
from robustbench_sparse.runs.trained import Trained


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a training stands: its stage, the last whole epoch in it, and the steps of all stages."""

    stage: int
    epoch: int
    step: int


class Checkpoint:
    """Writes and reads that state; an unbroken training and one that goes on from here end with the same numbers.

    Args:
        path: the file.
        model: the network in training.
        defenses: with their memories.
        streams: the run's.
        trained: what the training has left so far.
    """

    def __init__(
        self, path: Path, model: nn.Module, defenses: Sequence[Defense], streams: Streams, trained: Trained
    ) -> None:
        self.path, self.model, self.defenses = path, model, defenses
        self.streams, self.trained = streams, trained
        self._state: dict[str, Any] | None = None

    def write(self, at: Moment, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        """Keep everything as it is now."""
        state = {
            "stage": at.stage,
            "epoch": at.epoch,
            "step": at.step,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "defenses": [d.state_dict() for d in self.defenses],
            "streams": self.streams.state_dict(),
            **self.trained.memory(),
        }
        write_atomically(self.path, lambda f: torch.save(state, f))

    def read(self) -> Moment | None:
        """The moment that is stored, or None where nothing is.

        Raises:
            UserError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            at = Moment(**{k: int(state[k]) for k in ("stage", "epoch", "step")})
        except Exception as e:
            raise UserError(
                f"{self.path}: damaged, cannot go on from here ({one_line(e)[:80]}); "
                "delete it to train this run again"
            ) from None
        self._state = state
        return at

    def restore(self, optimizer: torch.optim.Optimizer, schedule: Schedule, device: torch.device) -> None:
        """Put everything back to the moment that was read.

        Raises:
            UserError: the file belongs to another run.
        """
        state = self._state
        assert state is not None, "read comes first"
        try:
            self.model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            for defense, memory in zip(self.defenses, state["defenses"], strict=True):
                defense.load_state_dict(_to(memory, device))
            self.streams.load_state_dict(state["streams"])
            self.trained.remember(state)
        except (KeyError, ValueError, RuntimeError) as e:
            raise UserError(f"{self.path}: does not fit this run: {one_line(e)[:200]}") from None
        self._state = None


def _to(value: Any, device: torch.device) -> Any:
    """Move every tensor in nested dictionaries, lists and tuples to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(v, device) for v in value)
    return value
