"""Random crops and flips of a whole batch at once, on the batch's device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import check


@dataclass(frozen=True, kw_only=True)
class Augment:
    """The usual augmentation of CIFAR: crop from a zero-padded image, then flip it.

    Args:
        crop: pixels of zeros on every side that the image is cropped from; 0 leaves images where they are.
        flip: mirror every image with probability 1/2.
    """

    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        check(self.crop >= 0, "crop", "an integer >= 0", self.crop)

    def __call__(
        self, x: Tensor, generator: torch.Generator, of: int | None = None, first: int = 0
    ) -> Tensor:
        """Augment images (B, C, H, W) of any type.

        Args:
            x: the images; returned as they are when both settings are off, and then nothing is drawn.
            generator: on the CPU, so that every device sees the same crops.
            of: images that numbers are drawn for; x are those of them from the number ``first`` on. None: x are all.
            first: the number of the first one.

        Returns:
            Images of the same shape and type.
        """
        batch, channels, height, width = x.shape
        of, mine = batch if of is None else of, slice(first, first + batch)
        rows = torch.arange(height).expand(batch, -1)
        columns = torch.arange(width).expand(batch, -1)
        if self.crop > 0:
            offsets = torch.randint(2 * self.crop + 1, (2, of, 1), generator=generator)[:, mine]
        if self.flip:
            mirrored = torch.rand(of, 1, generator=generator)[mine] < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        if self.crop > 0:
            x = F.pad(x, (self.crop,) * 4)
            rows, columns = rows + offsets[0], columns + offsets[1]
            rows = rows.to(x.device)[:, None, :, None].expand(-1, channels, -1, x.shape[3])
            x = x.gather(2, rows)  # (B, C, H, W + 2 crop)
        if self.crop > 0 or self.flip:
            x = x.gather(3, columns.to(x.device)[:, None, None, :].expand(-1, channels, height, -1))
        return x
