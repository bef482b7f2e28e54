"""Coarser images: JPEG's compression, and large pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attacks.base import SampleRandom
from robustbench_sparse.shifts.base import Corruption


@dataclass(frozen=True, kw_only=True)
class JPEG(Corruption):
    """Compressed as a JPEG of quality 80, 65, 58, 50, 40, and read again: the published setting at any size.

    Images are rounded to 256 grey levels first. Three channels are compressed as colours, as Pillow does it; any other
    number one by one. The last digits may depend on Pillow's version of libjpeg.

    Args:
        severity: 1 to 5.
    """

    key: ClassVar[str] = "jpeg"

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        pixels = (x[0].cpu() * 255).round().to(torch.uint8).numpy()
        if len(pixels) == 3:
            return _tensor(self._through(Image.fromarray(pixels.transpose(1, 2, 0)))).permute(2, 0, 1)[None]
        return torch.stack([_tensor(self._through(Image.fromarray(channel))) for channel in pixels])[None]

    def _through(self, image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.chosen((80, 65, 58, 50, 40)))
        return Image.open(file, formats=["JPEG"])


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).float() / 255


@dataclass(frozen=True, kw_only=True)
class Pixelate(Corruption):
    """Shrunk to N c pixels a side, rounded down, c = 0.95, 0.9, 0.85, 0.75, 0.65, and back; both by a box filter.

    The published setting at any size: each large pixel is the mean of those whose middles it covers.

    Args:
        severity: 1 to 5.
    """

    key: ClassVar[str] = "pixelate"

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        height, width = x.shape[2:]
        percent = self.chosen((95, 90, 85, 75, 65))  # whole numbers: 0.95 x 20 must not round to 18
        small = max(1, width * percent // 100), max(1, height * percent // 100)
        out = []
        for channel in x[0].float().cpu().numpy():
            image = Image.fromarray(channel).resize(small, Image.Resampling.BOX)
            out.append(torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BOX))))
        return torch.stack(out)[None]
