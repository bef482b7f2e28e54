"""Named random streams of one seed: what one part of a run draws never shifts what another part draws."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive(seed: int, name: str) -> int:
    """A number in [0, 2^63) fixed by the run's seed and a stream's name."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Streams:
    """The streams of one run: CPU generators by name, made when first asked for."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[str, torch.Generator] = {}

    def get(self, name: str) -> torch.Generator:
        """The generator of a stream, the same object every time."""
        if name not in self._generators:
            self._generators[name] = torch.Generator().manual_seed(derive(self.seed, name))
        return self._generators[name]

    def state_dict(self) -> dict[str, Tensor]:
        """States of all streams used so far."""
        return {name: g.get_state() for name, g in self._generators.items()}

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Put every stream back to a saved state, in place."""
        for name, state in states.items():
            self.get(name).set_state(state)
