"""The 8x8 digits that come with scikit-learn: 1 797 grey images, no download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from robustbench_sparse.data.base import Dataset, DatasetSpec

SPLIT_SEED = 1797  # the test part is part of the data set: never change it
TEST_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Digits(DatasetSpec):
    """Optical digits (Alpaydin and Kaynak 1998), values 0..16 scaled to 0..255.

    A quarter of each class is the test part.
    """

    key: ClassVar[str] = "digits"

    def load(self, root: Path | None = None, cache: Path | None = None) -> Dataset:
        """Read the data set; both arguments are ignored, for nothing has to be found or decoded."""
        from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

        digits = load_digits()
        x = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8))[:, None]  # (N, 1, 8, 8)
        y = torch.from_numpy(digits.target.astype(np.int64))
        # RandomState, for numpy promises that its numbers stay the same in all versions.
        random = np.random.RandomState(SPLIT_SEED)
        test = torch.zeros(len(y), dtype=torch.bool)
        for label in range(10):
            members = np.flatnonzero(y.numpy() == label)
            test[random.permutation(members)[: round(TEST_SHARE * len(members))]] = True
        return Dataset(
            name=self.key,
            label="digits",
            train_x=x[~test],
            train_y=y[~test],
            test_x=x[test],
            test_y=y[test],
            classes=tuple(str(digit) for digit in range(10)),
        )
