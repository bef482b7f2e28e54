"""Random numbers for training: one stream for a whole batch, drawn where they are needed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.base import SampleRandom, batch_counters

Fill = Callable[[Tensor, torch.Generator], Tensor]  # fills a float32 vector in place


class BatchRandom(SampleRandom):
    """``SampleRandom`` for training: all images share one generator, so a batch costs one draw.

    Numbers for another device than the generator's are drawn on that device, seeded by one draw from the
    generator. Its state alone fixes all that follows, on every device, and large tensors are never copied.

    Args:
        generator: the stream.
        count: number of images, where a caller asks for it.
    """

    def __init__(self, generator: torch.Generator, count: int = 0) -> None:
        super().__init__([])
        self.generator, self._count = generator, count

    def __len__(self) -> int:
        return self._count

    def subset(self, keep: Tensor) -> BatchRandom:
        """The same stream for some of the images: a bool mask (B,) or indices."""
        count = int(keep.sum()) if keep.dtype == torch.bool else len(keep)
        return BatchRandom(self.generator, count)

    def branches(self, count: int) -> None:
        """None: the images share their stream."""
        return

    def uniform(self, like: Tensor) -> Tensor:
        """U(0, 1) with the shape, type, device and memory layout of ``like``."""
        return self._drawn(like, lambda out, g: out.uniform_(generator=g))

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) with the shape, type, device and memory layout of ``like``."""
        return self._drawn(like, lambda out, g: out.normal_(generator=g))

    def integers(self, high: int) -> Tensor:
        """One integer in [0, high) per image; (B,) on the CPU."""
        on_cpu = self._on(torch.device("cpu"))
        return torch.randint(high, (self._count,), generator=on_cpu)

    def counters(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and places of ``count`` images: one key for all, the images' numbers in the batch for places."""
        return batch_counters(self.generator, count)

    def _drawn(self, like: Tensor, fill: Fill) -> Tensor:
        out = torch.empty(like.numel(), dtype=torch.float32, device=like.device)
        # By one thread: several with streams of their own wait for cores on which torch's threads still spin.
        fill(out, self._on(like.device))
        # The numbers lie in the order in which ``like`` does: whatever is done with both is one sweep.
        strides = torch.empty_like(like, device="meta").stride()
        return out.to(like.dtype).as_strided(like.shape, strides)

    def _on(self, device: torch.device) -> torch.Generator:
        own = self.generator
        if own.device.type == device.type:
            return own
        seed = int(torch.randint(2**62, (), generator=own, device=own.device))
        return torch.Generator(device).manual_seed(seed)
