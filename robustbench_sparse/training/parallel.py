"""Several processes that train one network: who has which images, and what they add up.

Every process has the whole network and a part of every minibatch. Gradients are summed before any hook sees them, so
that proximal steps, splittings and Bregman iterations are the same everywhere; so are all weights, multipliers and
controllers. What is drawn for images is drawn for the whole minibatch by every process, from the same stream, and each
takes its part of it: the numbers are those of one process, but for rounding.

There is no ``DistributedDataParallel``: it wraps the network and sums gradients while the backward pass runs, where
attacks, second passes and gradients for a weight perturbation ask for gradients of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from defenses.base import Defense, Part

# For who waits until another process comes to the same sum, and while the first one validates. That a process is gone
# is noticed by gloo at once, and by nccl when the time is over.
_STEP, _LONG = timedelta(minutes=30), timedelta(days=7)


class Lost(Exception):
    """Another process of the training is gone."""


class Ranks:
    """One process alone: every minibatch is its own. The base of ``Several``.

    Attributes:
        number: of this process, from 0.
        count: processes in all.
        of: images of the minibatch at work.
        share: of an image that this process stands for: less than 1 where all of them train on the same images.
    """

    number, count = 0, 1
    of: int = 0
    share: float = 1

    @property
    def leads(self) -> bool:
        """Whether this process validates and writes."""
        return self.number == 0

    @property
    def part(self) -> Part | None:
        """What defenses have to know."""
        return None

    @property
    def stream(self) -> str:
        """Behind the names of streams that each process has of its own; the first one has those of one process."""
        return "" if self.leads else f"/{self.number}"

    def take(self, length: int) -> slice:
        """The part of a minibatch of so many images that this process trains on."""
        self.of = length
        return slice(0, length)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """A step: batch-norm layers that normalise by the minibatch do so by the whole of it."""
        return contextlib.nullcontext()

    def weighed(self, loss: Tensor) -> Tensor:
        """The share of the minibatch's mean loss that the mean over this process's part is."""
        return loss

    def sum_gradients(self, model: nn.Module) -> None:
        """Give every parameter the gradient of the whole minibatch."""

    def sums(self, *values: Tensor | float) -> tuple[float, ...]:
        """Sums of numbers over all processes."""
        return tuple(float(v) for v in values)

    def told(self, measure: Callable[[], float]) -> float:
        """What the first process measures, which tells it to the others."""
        return measure()

    def align(self, model: nn.Module, defenses: Sequence[Defense]) -> None:
        """Let all processes go on from the first one's network, bit for bit, as one that resumes does."""


class Several(Ranks):
    """One of several processes.

    Args:
        number: of this process.
        count: of all, >= 2.
        device: where the network is.
        words: the group in which numbers are told, on the CPU; sums of tensors go through the default group.
    """

    def __init__(
        self, number: int, count: int, device: torch.device, words: dist.ProcessGroup | None
    ) -> None:
        self.number, self.count = number, count
        self._device, self._words = device, words
        self._mine = _Mine(self)
        self.syncing = False

    @property
    def part(self) -> Part:
        """As the defenses know it."""
        return self._mine

    @property
    def alike(self) -> bool:
        """Whether all processes train on the same images: there are fewer than processes."""
        return self.of < self.count

    def take(self, length: int) -> slice:
        """Parts of about one size, in order; all of it for everyone where there are too few images."""
        self.of = length
        first, count = (0, length) if self.alike else span(length, self.count, self.number)
        self.share = 1 / self.count if self.alike else 1
        self._mine.first, self._mine.count, self._mine.of = first, count, length
        return slice(first, first + count)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """See ``Ranks``."""
        self.syncing = not self.alike
        try:
            yield
        finally:
            self.syncing = False

    def weighed(self, loss: Tensor) -> Tensor:
        """The loss times the share of the minibatch's images."""
        return loss * (self._mine.count * self.share / self.of)

    def sum_gradients(self, model: nn.Module) -> None:
        """One sum of all gradients in one vector."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        for gradient, total in zip(gradients, self._mine.total(gradients), strict=True):
            assert total is not None
            gradient.copy_(total)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; the same bits on each of them."""
        out = tensor.detach().clone()
        with _noticing():
            dist.all_reduce(out)
        return out

    def each(self, vector: Tensor) -> Tensor:
        """Every process's vector, (C,) -> (processes, C)."""
        found = [torch.empty_like(vector) for _ in range(self.count)]
        with _noticing():
            dist.all_gather(found, vector.detach().contiguous())
        return torch.stack(found)

    def gathered(self, values: Tensor) -> Tensor:
        """The parts of all processes one behind the other."""
        if self.alike:
            return values
        sizes = [span(self.of, self.count, number)[1] for number in range(self.count)]
        padded = values.new_zeros(max(sizes), *values.shape[1:])
        padded[: len(values)] = values.detach()
        found = [torch.empty_like(padded) for _ in sizes]
        with _noticing():
            dist.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    def sums(self, *values: Tensor | float) -> tuple[float, ...]:
        """In float64."""
        row = torch.tensor([float(v) for v in values], dtype=torch.float64)
        with _noticing():
            dist.all_reduce(row, group=self._words)
        return tuple(row.tolist())

    def told(self, measure: Callable[[], float]) -> float:
        """The others wait meanwhile."""
        value = torch.tensor(measure() if self.leads else 0.0, dtype=torch.float64)
        with _noticing():
            dist.broadcast(value, src=0, group=self._words)
        return value.item()

    def align(self, model: nn.Module, defenses: Sequence[Defense]) -> None:
        """Weights, statistics, and what defenses remember: on a GPU it may differ by rounding."""
        tensors = [*model.state_dict().values(), *_tensors([d.memory for d in defenses])]
        with _noticing():
            for tensor in tensors:
                if tensor.numel():
                    # A copy: what is sent must lie in one piece of memory, which weights need not.
                    sent = tensor.detach().to(self._device).contiguous()
                    dist.broadcast(sent, src=0)
                    tensor.detach().copy_(sent)


@dataclass
class _Mine:
    """The part of the minibatch at work; see ``defenses.base.Part``."""

    ranks: Several
    first: int = 0
    count: int = 0
    of: int = 0

    def total(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Tensor by tensor, through one vector."""
        there = [t for t in tensors if t is not None]
        if not there:
            return list(tensors)
        vector = self.ranks.sum(torch.cat([t.detach().reshape(-1) for t in there]))
        parts = iter(torch.split(vector, [t.numel() for t in there]))
        return [None if t is None else next(parts).view(t.shape) for t in tensors]

    def whole(self, values: Tensor) -> Tensor:
        """Of all processes."""
        return self.ranks.gathered(values)


def span(length: int, count: int, number: int) -> tuple[int, int]:
    """First element and length of one of ``count`` parts of a row, as equal as they can be."""
    size, more = divmod(length, count)
    return number * size + min(number, more), size + (number < more)


@contextlib.contextmanager
def joined(meeting: Path, number: int, count: int, device: torch.device) -> Iterator[Several]:
    """Meet the other processes and train with them: gloo on a CPU, nccl on GPUs.

    Args:
        meeting: a file that is not there yet, by which they find each other.
        number, count: this process, and how many there are.
        device: of this process.

    Raises:
        Lost: another process is gone.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _noticing():
        dist.init_process_group(
            backend, init_method=f"file://{meeting}", rank=number, world_size=count, timeout=_STEP
        )
        words = dist.new_group(backend="gloo", timeout=_LONG)
    assert isinstance(words, dist.ProcessGroup)
    try:
        yield Several(number, count, device, words)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _noticing() -> Iterator[None]:
    """What torch raises where another process does not answer any more becomes ``Lost``."""
    try:
        yield
    except RuntimeError as e:
        raise Lost(str(e)) from e


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
