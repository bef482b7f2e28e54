"""A network as it was before anybody asked it: the copy that fresh copies are made of."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_sparse.foundation.errors import one_line
from robustbench_sparse.judging.outside import Slot, outside, traces


@dataclass
class Copy:
    """A copy of a network, and its own contents of the places outside it."""

    network: nn.Module
    contents: list[Any]


class Fresh:
    """Keeps a copy of a network, and of all that its code holds outside it; see ``judging.outside``.

    Make it before the first query. What is done to the network later, and what it remembers later, changes no copy.

    Args:
        model: the network; None where no check will ask for a copy: then nothing is walked through, and none made.

    Attributes:
        why: the reason where the network cannot be copied, or an empty string.
        spaces: the globals of the functions it uses.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.why, self.spaces = "", list[dict[str, Any]]()
        self._slots: list[Slot] = []
        self._kept: tuple[nn.Module, list[Any]] | None = None
        if model is None:
            self.why = "no copy was kept"
            return
        try:
            found = outside(model)
            self.spaces = found.spaces
            self._slots = [s for s in found.slots if _can_be_copied(s)]
            self._kept = copy.deepcopy((model, [s.get() for s in self._slots]))
        except (Exception, SystemExit) as e:  # whatever a foreign network's parts raise
            self.why = f"{type(e).__name__}: {one_line(e)[:160]}"
            return
        if self._shares_with(model):
            self._kept, self.why = None, "its copy shares tensors with it"

    def _shares_with(self, model: nn.Module) -> bool:
        assert self._kept is not None
        mine = {id(t) for t in _tensors(self._kept[0])} | {id(m) for m in self._kept[0].modules()}
        return any(id(o) in mine for o in (*_tensors(model), *model.modules()))

    def make(self, device: torch.device, same_weights: bool = False) -> Copy:
        """A copy nobody has asked yet, in eval mode.

        Args:
            device: where the images are.
            same_weights: the copies share their parameters, which is quicker: for networks that do not write to them.

        Raises:
            RuntimeError: the network cannot be copied.
        """
        if self._kept is None:
            raise RuntimeError(f"the network cannot be copied: {self.why}")
        memo: dict[int, Any] = {id(p): p for p in self._kept[0].parameters()} if same_weights else {}
        network, contents = copy.deepcopy(self._kept, memo)
        return Copy(network.eval().to(device), contents)

    @contextlib.contextmanager
    def inside(self, made: Copy) -> Iterator[nn.Module]:
        """A copy's network, for the length of a block in which what lies outside it is the copy's own as well."""
        now = [s.get() for s in self._slots]
        try:
            for slot, value in zip(self._slots, made.contents, strict=True):
                slot.set(value)
            yield made.network
        finally:
            made.contents = [s.get() for s in self._slots]
            for slot, value in zip(self._slots, now, strict=True):
                slot.set(value)

    def changed_by(self, ask: Callable[[nn.Module], object], device: torch.device) -> list[str]:
        """Names of the places in a fresh copy, and outside it, that are not as they were once it was asked."""
        with self.inside(self.make(device)) as network:
            before = traces(network, self._slots)
            ask(network)
            after = traces(network, self._slots)
        return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _can_be_copied(slot: Slot) -> bool:
    try:
        copy.deepcopy(slot.get())
    except (Exception, SystemExit):  # such as an open file: it stays the one it is
        return False
    return True
