"""Image files to one uint8 array, in parallel threads: Pillow decodes without Python's lock."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from robustbench_sparse.data.base import DataError
from robustbench_sparse.data.bounded import LARGE_PIXELS, MAX_PIXELS, check_total

BLOCK = 256  # images of one task
# Threads wait for each other when a file takes about a tenth of a millisecond: on two cores 10 000 JPEGs of
# 32 x 32 take 1.7 s with two threads and 1.2 s with one; with images of 512 x 512 two are twice as fast.
SMALL_FILE = 8192  # bytes
# 16-bit and floating-point images are not among them: Pillow would clip instead of scaling them.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # others may start programs to be read
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
Interpolation = Literal["bilinear", "bicubic", "nearest", "box", "hamming", "lanczos"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)


@dataclass(frozen=True)
class Fitting:
    """How images are brought to one size.

    Attributes:
        size: pixels of a side, >= 1.
        crop: share of the resized image that is kept at its centre, in (0, 1]; None: the whole image
            becomes a square.
        interpolation: of Pillow, antialiased (but ``nearest``).
    """

    size: int
    crop: float | None = None
    interpolation: Interpolation = "bilinear"

    @property
    def shorter(self) -> int:
        """Pixels of the shorter side before the centre is cut out."""
        return self.size if self.crop is None else math.floor(self.size / self.crop)

    def said(self) -> str:
        """The same in words."""
        if self.crop is None:
            return f"images resized to {self.size} x {self.size} pixels ({self.interpolation})"
        return (
            f"images resized to {self.shorter} pixels on their shorter side ({self.interpolation}), of which the "
            f"{self.size} x {self.size} at the centre are kept"
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, resized and cut as torchvision's ``Resize`` and ``CenterCrop`` do.

        Raises:
            ValueError: for one so long and narrow that it would fill the memory.
        """
        method = Image.Resampling[self.interpolation.upper()]
        if self.crop is None:
            square = (self.size, self.size)
            return image if image.size == square else image.resize(square, method)
        width, height = image.size
        longer = int(self.shorter * max(width, height) / min(width, height))
        size = (self.shorter, longer) if width <= height else (longer, self.shorter)
        if self.shorter * longer > MAX_PIXELS:  # a file of one row of pixels may ask for any number of them
            raise ValueError(f"{size[0]} x {size[1]} pixels, once resized, are more than {MAX_PIXELS}")
        if image.size != size:
            image = image.resize(size, method)
        left, top = (round((side - self.size) / 2) for side in size)
        return image.crop((left, top, left + self.size, top + self.size))


def decode_images(
    names: Sequence[str],
    read: Callable[[str], bytes],
    *,
    where: str,
    fitting: Fitting | None,
    grayscale: bool,
    limit: int,
) -> npt.NDArray[np.uint8]:
    """Decode image files.

    Args:
        names: the files, at least one.
        read: returns a file's bytes; called from several threads.
        where: stands before a file's name in errors.
        fitting: brings them to one size; None takes images as they are.
        grayscale: one channel (ITU-R 601 luma) in place of RGB.
        limit: bytes that all of them may take once they are decoded.

    Returns:
        uint8 (N, C, S, S).

    Raises:
        DataError: naming the first file that cannot be read or has another size than the first one; or more pixels
            than there may be.
    """
    large = Lock()

    def decode(name: str) -> npt.NDArray[np.uint8]:
        try:
            image: Image.Image = Image.open(io.BytesIO(read(name)), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:  # a small file may claim, and fill, any number
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
            if image.mode not in MODES:
                raise ValueError(f"pixels of type {image.mode} are not supported")
            # One large one at a time: in all threads at once they would fill the memory.
            with large if image.width * image.height > LARGE_PIXELS else nullcontext():
                image = image.convert("L" if grayscale else "RGB")  # reads all pixels: a cut file fails here
                if fitting is not None:
                    image = fitting(image)
        except Exception as error:  # what a decoder raises on a damaged file is not documented
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{where}: {name}: not a readable image: {reason}") from error
        pixels = np.asarray(image)  # (H, W) or (H, W, 3)
        return pixels[None] if grayscale else pixels.transpose(2, 0, 1)

    if fitting is not None:  # before anything takes that size
        size = fitting.size
        taken = (1 if grayscale else 3) * size * size
        check_total(len(names), taken, limit, where, f"{len(names)} images of {size} x {size} pixels")
    first = decode(names[0])
    channels, height, width = first.shape
    advice = "set `data.size` to resize all images to squares"
    if height != width:
        raise DataError(f"{where}: {names[0]} has {width} x {height} pixels, which is no square; {advice}")
    check_total(len(names), first.size, limit, where, f"{len(names)} images of {width} x {height} pixels")
    out = np.empty((len(names), channels, height, width), dtype=np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + BLOCK, len(names))):
            image = decode(names[i])
            if image.shape != first.shape:
                got = f"{image.shape[2]} x {image.shape[1]}"
                raise DataError(
                    f"{where}: {names[i]} has {got} pixels, but {names[0]} has {width} x {height}; {advice}"
                )
            out[i] = image

    threads = os.cpu_count() if len(read(names[0])) > SMALL_FILE else 1
    with ThreadPoolExecutor(threads) as pool:
        # In order, so that of several faults the first one in the list is reported.
        for _ in pool.map(fill, range(0, len(names), BLOCK)):
            pass
    return out
