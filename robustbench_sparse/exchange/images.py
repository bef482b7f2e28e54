"""Adversarials in a file of their own: written as a plain tensor, read without running code, and looked at closely."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from attacks.base import Threat
from robustbench_sparse.foundation.errors import UserError, shown
from robustbench_sparse.foundation.files import read_state, write_atomically
from robustbench_sparse.judging.judge import BOX_SLACK

WIDEST, AROUND = 8, 1 << 20  # bytes of a number in a file, and of what stands around the numbers


def write_images(path: Path, x: Tensor) -> None:
    """Write images (N, C, H, W) as torch's own file of one tensor, readable with ``weights_only=True``."""
    plain = x.detach().cpu().contiguous().clone()
    write_atomically(path, lambda f: torch.save(plain, f))


def read_images(path: Path, values: int) -> Tensor:
    """The one tensor of a file, as float32; bytes 0..255 become numbers in [0, 1].

    Args:
        path: safetensors, or a file of ``torch.save``: the tensor, or a mapping with a single tensor in it.
        values: numbers that it may hold at most; a larger file is not even opened.

    Raises:
        UserError: it is missing, damaged, too large, could run code, or holds anything but one tensor of numbers.
    """
    most = WIDEST * values + AROUND
    if path.is_file() and path.stat().st_size > most:
        raise UserError(f"{path}: expected at most {most} bytes, got {path.stat().st_size}")
    found = read_state(path)
    if isinstance(found, dict) and len(found) == 1:
        (found,) = found.values()
    if not isinstance(found, Tensor):
        raise UserError(f"{path}: expected one tensor, got {shown(type(found).__name__)}")
    if (
        found.layout is not torch.strided
        or found.device.type != "cpu"
        or found.is_quantized
        or found.is_nested
    ):
        raise UserError(f"{path}: expected a plain tensor")
    if found.numel() > values:  # a tensor may say that one number stands at many places
        raise UserError(f"{path}: expected at most {values} numbers, got {found.numel()}")
    if found.dtype == torch.uint8:
        return found.float() / 255
    if not found.is_floating_point():
        raise UserError(f"{path}: expected floating-point numbers or bytes, got {found.dtype}")
    return found.detach().float().contiguous()


def check_images(candidate: Tensor, x: Tensor, threat: Threat, where: str) -> None:
    """UserError unless adversarials are what an adversary may choose: finite, in the box, and in each image's ball.

    That each one lies near the clean image of its place says that the order is right, too.

    Args:
        candidate: adversarials (N, C, H, W), float32.
        x: the clean images in [0, 1], in the same order.
        threat: norm and radius.
        where: stands first in errors.
    """
    if candidate.shape != x.shape:
        raise UserError(f"{where}: expected images of shape {tuple(x.shape)}, got {tuple(candidate.shape)}")
    finite = torch.isfinite(candidate).flatten(1).all(1)
    if not bool(finite.all()):
        raise UserError(f"{where}: {_first(~finite)} not finite")
    outside = ((candidate < -BOX_SLACK) | (candidate > 1 + BOX_SLACK)).flatten(1).any(1)
    if bool(outside.any()):
        low, high = float(candidate.min()), float(candidate.max())
        raise UserError(f"{where}: {_first(outside)} outside [0, 1]: values from {low:.4g} to {high:.4g}")
    size = threat.size(candidate - x)
    far = ~(size <= threat.reach)
    if bool(far.any()):
        order = ""
        if int(far.sum()) > len(x) // 2:
            order = "; are they in the order of the data set, and of this radius?"
        raise UserError(
            f"{where}: {_first(far)} outside the ball {threat.norm} {threat.eps:.6g}: up to {float(size.max()):.6g}"
            f"{order}"
        )


def _first(wrong: Tensor) -> str:
    """How many images are wrong, and which comes first."""
    count = int(wrong.sum())
    return f"{count} of {len(wrong)} images, number {int(wrong.nonzero()[0])} first, {'is' if count == 1 else 'are'}"
