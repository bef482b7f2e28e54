"""What every data set stands on: its settings, the loaded images, where files and caches are looked for."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from attacks.base import check


class DataError(ValueError):
    """Data is missing or damaged. One line: what, where it was looked for, how to get it."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set in memory, on the CPU.

    Attributes:
        name: the data set's key in a config.
        label: its name for people; tables and figures show this one.
        train_x: training images, uint8 in 0..255, (N, C, S, S); none at all (N = 0) of images that are only judged.
        train_y: their labels, int64 in 0..K-1, (N,).
        test_x, test_y: the same of the test part, at least one image.
        classes: names of the K classes.
        fingerprint: first 16 hexadecimal digits of the SHA-256 of images, labels and class names.
    """

    name: str
    label: str
    train_x: Tensor = field(repr=False)
    train_y: Tensor = field(repr=False)
    test_x: Tensor = field(repr=False)
    test_y: Tensor = field(repr=False)
    classes: tuple[str, ...]
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        check(len(self.classes) >= 2, "classes", "at least 2", self.classes)
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            check(
                x.dtype == torch.uint8 and x.ndim == 4, f"{part}_x", "uint8 (N, C, S, S)", (x.dtype, x.shape)
            )
            check(x.shape[2] == x.shape[3], f"{part}_x", "square images", tuple(x.shape))
            check(x.shape[1:] == self.train_x.shape[1:], f"{part}_x", "images like train_x", tuple(x.shape))
            check(len(x) > 0 or part == "train", f"{part}_x", "at least one image", tuple(x.shape))
            fine = y.dtype == torch.int64 and y.shape == x.shape[:1]
            check(fine, f"{part}_y", f"int64 ({len(x)},)", (y.dtype, tuple(y.shape)))
            if not len(x):
                continue
            low, high = int(y.min()), int(y.max())
            check(
                low >= 0 and high < len(self.classes), f"{part}_y", f"0..{len(self.classes) - 1}", (low, high)
            )
        object.__setattr__(self, "fingerprint", self._fingerprint())

    @property
    def channels(self) -> int:
        """Channels C of an image."""
        return self.train_x.shape[1]

    @property
    def size(self) -> int:
        """Height and width S of an image in pixels."""
        return self.train_x.shape[2]

    def _fingerprint(self) -> str:
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for values in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(f"\n{values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(ABC):
    """Settings of a data set; ``load`` reads it."""

    key: ClassVar[str]

    def said(self) -> str:
        """What is done to an image before it is one of the data set, in a sentence; empty where it is nothing."""
        return ""

    @abstractmethod
    def load(self, root: Path | None = None, cache: Path | None = None) -> Dataset:
        """Read the data set.

        Args:
            root: folder of the data sets; None means $RBS_DATA, or ``data`` where that is not set.
            cache: folder for decoded images; None means $RBS_CACHE, or ``~/.cache/robustbench_sparse``.

        Raises:
            DataError: with one line for the user when data is missing or damaged.
        """


def data_root(root: Path | None) -> Path:
    """The folder of the data sets: the argument, $RBS_DATA, or ``data`` in the working directory."""
    return (root or Path(os.environ.get("RBS_DATA") or "data")).expanduser().absolute()
