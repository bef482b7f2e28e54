"""Image files to one uint8 array, in parallel threads: Pillow decodes without Python's lock."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock

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


def decode_images(
    names: Sequence[str],
    read: Callable[[str], bytes],
    *,
    where: str,
    size: int | None,
    grayscale: bool,
    limit: int,
) -> npt.NDArray[np.uint8]:
    """Decode image files.

    Args:
        names: the files, at least one.
        read: returns a file's bytes; called from several threads.
        where: stands before a file's name in errors.
        size: resize to ``size`` x ``size`` (bilinear, antialiased); None takes images as they are.
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
        except Exception as error:  # what a decoder raises on a damaged file is not documented
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{where}: {name}: not a readable image: {reason}") from error
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)  # (H, W) or (H, W, 3)
        return pixels[None] if grayscale else pixels.transpose(2, 0, 1)

    if size is not None:  # before anything takes that size
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
