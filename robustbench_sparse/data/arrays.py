"""Images that are in memory already: arrays, tensors, or a ``TensorDataset``, looked at before they are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from attacks.base import check
from robustbench_sparse.data.base import DataError, Dataset, DatasetSpec

NAME = "robustbench_sparse.data.arrays:Arrays"  # what a config would call it
Given = TensorDataset | Sequence[Any]  # images and labels
_NOTICED = 0.01  # of a byte's step: what float32 makes of k / 255 lies far below

_held: WeakValueDictionary[str, Dataset] = WeakValueDictionary()


@dataclass(frozen=True, kw_only=True)
class Arrays(DatasetSpec):
    """Images of this process, named by what they are: see ``hold``.

    Args:
        fingerprint: of the images that were handed over, see ``Dataset``.
        label: what tables call them.
    """

    key: ClassVar[str] = "arrays"

    fingerprint: str
    label: str = "arrays"

    def load(self, root: Path | None = None, cache: Path | None = None) -> Dataset:
        """The images as they were handed over.

        Raises:
            DataError: in a process that was not handed them.
        """
        found = _held.get(self.fingerprint)
        if found is None:
            raise DataError(
                "arrays are known only to the process that was given them: give them again, as `data`"
            )
        return found


def hold(dataset: Dataset) -> dict[str, Any]:
    """A config entry for a data set in memory; it is known for as long as the data set itself is kept."""
    _held[dataset.fingerprint] = dataset
    return {"name": NAME, "fingerprint": dataset.fingerprint, "label": dataset.label}


def parts_of(given: object) -> tuple[Tensor, Tensor]:
    """Images and labels, on the CPU, as they were given: two arrays, or a ``TensorDataset`` of two tensors.

    Raises:
        DataError: for anything else.
    """
    parts = given.tensors if isinstance(given, TensorDataset) else given
    if not isinstance(parts, tuple | list) or len(parts) != 2:
        got = f"{len(parts)} parts" if isinstance(parts, tuple | list) else type(given).__name__
        raise DataError(f"expected a pair (images, labels) or a TensorDataset of two tensors, got {got}")
    return _tensor(parts[0], "images"), _tensor(parts[1], "labels")


def dataset_of(x: Tensor, y: Tensor, classes: int, label: str = "arrays") -> tuple[Dataset, str]:
    """A data set of a test part alone.

    Args:
        x: images, uint8 in 0..255 or floating-point in [0, 1], (N, C, S, S).
        y: labels, whole numbers in 0..classes - 1, (N,).
        classes: number of classes K, >= 2.
        label: what tables call it.

    Returns:
        The data set, whose images are whole bytes, and what was changed for that, in a sentence; else empty.

    Raises:
        DataError: with what to do, for images or labels that are not as expected.
    """
    _check_shape(x, y)
    if classes < 2:
        raise DataError(f"expected a network of at least 2 classes, got {classes}")
    labels = _labels(y, classes)
    whole, note = _bytes(x)
    names = tuple(str(k) for k in range(classes))
    empty = whole[:0], labels[:0]
    try:
        made = Dataset(
            name=Arrays.key,
            label=label,
            train_x=empty[0],
            train_y=empty[1],
            test_x=whole,
            test_y=labels,
            classes=names,
        )
    except ValueError as e:
        raise DataError(str(e)) from None
    return made, note


def _tensor(value: object, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        check(
            isinstance(value, np.ndarray | list | tuple), what, "a tensor or an array", type(value).__name__
        )
        array = np.asarray(value)
        check(array.dtype.kind in "buif", what, "numbers", str(array.dtype))
        return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    except (TypeError, ValueError) as e:
        raise DataError(f"{what}: expected a tensor or an array of numbers: {e}") from None


def _check_shape(x: Tensor, y: Tensor) -> None:
    shape = tuple(x.shape)
    if x.ndim == 3:
        raise DataError(
            f"images: expected (N, C, H, W), got {shape}: of grey images add the channel, x[:, None]"
        )
    if x.ndim != 4 or not len(x):
        raise DataError(f"images: expected (N, C, H, W) with at least one image, got {shape}")
    if shape[3] in (1, 3) and shape[1] == shape[2] and shape[1] not in (1, 3):
        raise DataError(
            f"images: expected (N, C, H, W), got {shape}: bring the channels forward, permute(0, 3, 1, 2)"
        )
    if shape[2] != shape[3]:
        raise DataError(f"images: expected squares, got {shape[2]} x {shape[3]} pixels: cut or resize them")
    if y.ndim == 2 and len(y) == len(x):
        raise DataError(
            f"labels: expected ({len(x)},), got {tuple(y.shape)}: of one-hot labels take argmax(1)"
        )
    if y.shape != x.shape[:1]:
        raise DataError(f"labels: expected ({len(x)},), one for each image, got {tuple(y.shape)}")


def _labels(y: Tensor, classes: int) -> Tensor:
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise DataError(f"labels: expected whole numbers, got {y.dtype}: y.long(), if they are classes")
    labels = y.to(torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        hint = ": they begin at 1, and should at 0" if (low, high) == (1, classes) else ""
        raise DataError(
            f"labels: expected 0 to {classes - 1}, as the network has {classes} classes, got {low} to {high}{hint}"
        )
    return labels.contiguous()


def _bytes(x: Tensor) -> tuple[Tensor, str]:
    """Images as whole bytes, and what rounding moved."""
    if x.dtype == torch.uint8:
        return x.contiguous(), ""
    if not x.is_floating_point():
        raise DataError(
            f"images: expected uint8 in 0..255 or floating-point numbers in [0, 1], got {x.dtype}"
        )
    values = x.to(torch.float64)
    if not bool(values.isfinite().all()):
        raise DataError("images: expected finite numbers, got nan or inf")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        cure = (
            "divide them by 255"
            if low >= 0 and high > 2
            else "take the normalisation back, and put it into the network"
        )
        raise DataError(f"images: expected numbers in [0, 1], got {low:.4g} to {high:.4g}: {cure}")
    scaled = 255 * values
    rounded = scaled.round()
    moved = float((scaled - rounded).abs().max())
    note = f"images rounded to whole bytes, by up to {moved:.2g}/255" if moved > _NOTICED else ""
    return rounded.to(torch.uint8).contiguous(), note
