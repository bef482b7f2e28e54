"""Random numbers for training: one stream for a whole batch, drawn where they are needed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.base import SampleRandom, batch_counters
from defenses.base import Part

Fill = Callable[[Tensor, torch.Generator], Tensor]  # fills a float32 vector in place


class BatchRandom(SampleRandom):
    """``SampleRandom`` for training: all images share one generator, so a batch costs one draw.

    Numbers for another device than the generator's are drawn on that device, seeded by one draw from the
    generator. Its state alone fixes all that follows, on every device, and large tensors are never copied.

    Args:
        generator: the stream.
        count: number of images, where a caller asks for it.
        part: where the images are a part of a minibatch, which one: numbers are drawn for all of it, and this part has
            its own. What is drawn must then be for all the part's images, once or several times.
    """

    def __init__(self, generator: torch.Generator, count: int = 0, part: Part | None = None) -> None:
        super().__init__([])
        self.generator, self._count, self._part = generator, count, part

    def __len__(self) -> int:
        return self._count

    def subset(self, keep: Tensor) -> BatchRandom:
        """The same stream for some of the images: a bool mask (B,) or indices."""
        count = int(keep.sum()) if keep.dtype == torch.bool else len(keep)
        if self._part is not None and count < self._part.count < self._part.of:
            raise ValueError("the streams of a part of a minibatch are for all of its images, not for some")
        everyone = self._part is not None and count == self._part.count
        return BatchRandom(self.generator, count, self._part if everyone else None)

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
        part = self._part
        if part is None:
            return torch.randint(high, (self._count,), generator=on_cpu)
        return torch.randint(high, (part.of,), generator=on_cpu)[part.first : part.first + part.count]

    def counters(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and places of ``count`` images: one key for all, the images' numbers in the batch for places."""
        keys, places = batch_counters(self.generator, count)
        return keys, places + (0 if self._part is None else self._rows(count)[1])

    def _drawn(self, like: Tensor, fill: Fill) -> Tensor:
        all_parts, start = like.numel(), 0
        if self._part is not None and all_parts:
            (rows, first), size = self._rows(len(like)), like.numel() // len(like)
            all_parts, start = rows * size, first * size
        out = torch.empty(all_parts, dtype=torch.float32, device=like.device)
        # By one thread: several with streams of their own wait for cores on which torch's threads still spin.
        fill(out, self._on(like.device))
        out = out[start : start + like.numel()]
        # The numbers lie in the order in which ``like`` does: whatever is done with both is one sweep.
        strides = torch.empty_like(like, device="meta").stride()
        return out.to(like.dtype).as_strided(like.shape, strides)

    def _rows(self, count: int) -> tuple[int, int]:
        """Of so many rows of this part: how many those of all parts are, and the first of this part's among them."""
        part = self._part
        assert part is not None
        times, rest = divmod(count, part.count)
        if rest:
            raise ValueError(f"expected draws for all {part.count} images of a part, got {count} rows")
        return times * part.of, times * part.first

    def _on(self, device: torch.device) -> torch.Generator:
        own = self.generator
        if own.device.type == device.type:
            return own
        seed = int(torch.randint(2**62, (), generator=own, device=own.device))
        return torch.Generator(device).manual_seed(seed)
