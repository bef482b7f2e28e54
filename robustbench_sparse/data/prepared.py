"""A data set ready for training: split, cut to size and moved to the device once, as uint8."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attacks.base import check
from robustbench_sparse.data.base import Dataset

Split = Literal["train", "val", "test"]

# Constants, not the run's seed: every run of a benchmark holds out and attacks the same images.
VALIDATION_SEED = 20_001
TEST_SEED = 20_002


class PreparedData:
    """The training, validation and test parts of a data set on one device.

    Args:
        dataset: the data set.
        validation: number of training images held out, >= 0; always the same ones.
        device: where the images live.
        train_limit: keep at most so many training images, >= 1; None keeps all. The images of a smaller limit
            are among those of a larger one.
        test_limit: the same for the test part.

    Attributes:
        device: where the images live.
        channels, size, classes: channels C and side S of an image, number of classes K.
        indices: for each part, the positions of its images in the data set (ascending, int64 on the CPU).

    Raises:
        ValueError: when a number is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        validation: int,
        device: torch.device | str = "cpu",
        train_limit: int | None = None,
        test_limit: int | None = None,
    ) -> None:
        available = len(dataset.train_y)
        most = max(available - 1, 0)  # images that are only judged come without a training part
        expected = f"0 to {most} of the {available} training images"
        check(0 <= validation <= most, "validation", expected, validation)
        check(train_limit is None or train_limit >= 1, "train_limit", "an integer >= 1", train_limit)
        check(test_limit is None or test_limit >= 1, "test_limit", "an integer >= 1", test_limit)
        train = _permutation(available, VALIDATION_SEED)
        val, train = train[:validation], train[validation:]
        test = _permutation(len(dataset.test_y), TEST_SEED)
        self.device = torch.device(device)
        self.channels, self.size, self.classes = dataset.channels, dataset.size, len(dataset.classes)
        self.indices: dict[Split, Tensor] = {
            "train": train[:train_limit].sort().values,
            "val": val.sort().values,
            "test": test[:test_limit].sort().values,
        }
        self._x: dict[Split, Tensor] = {}
        self._y: dict[Split, Tensor] = {}
        for split, index in self.indices.items():
            test_part = split == "test"
            self._x[split] = (dataset.test_x if test_part else dataset.train_x)[index].to(self.device)
            self._y[split] = (dataset.test_y if test_part else dataset.train_y)[index].to(self.device)

    @property
    def test_indices(self) -> Tensor:
        """Positions of the test images in the original test set, ascending, (n,)."""
        return self.indices["test"]

    @property
    def bytes(self) -> int:
        """Of all its images."""
        return sum(x.numel() * x.element_size() for x in self._x.values())

    def moved(self, device: torch.device | str) -> PreparedData:
        """The same images on another device; on the same one they are shared."""
        twin = copy.copy(self)
        twin.device = torch.device(device)
        twin._x = {split: x.to(device) for split, x in self._x.items()}
        twin._y = {split: y.to(device) for split, y in self._y.items()}
        return twin

    def count(self, split: Split) -> int:
        """Number of images of a part."""
        return len(self.indices[split])

    def steps_per_epoch(self, batch_size: int) -> int:
        """Minibatches of an epoch; the last one may be smaller."""
        return math.ceil(self.count("train") / batch_size)

    def gather(self, split: Split, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [0, 1], float32 (B, C, S, S), and labels (B,) at positions within a part."""
        positions = positions.to(self.device)
        return self._x[split][positions].float() / 255, self._y[split][positions]

    def image_hashes(self, split: Split) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """A 64-bit hash of each image's bytes (BLAKE2b), (n,); equal images have equal ones, in all parts.

        Among 70 000 images, two different ones share a hash with a probability of about 1e-10.
        """
        # A loop, and no matter: some microseconds an image, and no arithmetic of our own whose collisions to prove.
        digests = (
            hashlib.blake2b(image.data, digest_size=8).digest()
            for image in self._x[split].cpu().contiguous().numpy()
        )
        return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)

    def batches(self, generator: torch.Generator, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of the training part in the order of ``torch.randperm(n, generator=generator)``.

        The order is drawn at once. The last minibatch may be smaller.
        """
        return (self.gather("train", positions) for positions in self.shuffled(generator, batch_size))

    def shuffled(self, generator: torch.Generator, batch_size: int) -> Iterator[Tensor]:
        """The positions within the training part that ``batches`` gathers, minibatch by minibatch."""
        check(batch_size >= 1, "batch_size", "an integer >= 1", batch_size)
        order = torch.randperm(self.count("train"), generator=generator).to(self.device)
        return _chunks(order, batch_size)

    def ordered(self, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A part in order: images, labels and the images' positions in the data set (B,), on the CPU."""
        check(batch_size >= 1, "batch_size", "an integer >= 1", batch_size)
        for positions in _chunks(torch.arange(self.count(split)), batch_size):
            x, y = self.gather(split, positions)
            yield x, y, self.indices[split][positions]

    def images(self, split: Literal["train", "val"], count: int, generator: torch.Generator) -> Tensor:
        """Draw ``count`` images in [0, 1], (count, C, S, S); the ``ImageSource`` of defenses.

        No image comes twice before all have come once.

        Raises:
            ValueError: for the test part, or a validation part without images.
        """
        check(split in ("train", "val"), "split", "'train' or 'val'", split)
        n = self.count(split)
        check(n > 0, "split", "a part with images (validation > 0)", split)
        check(count >= 1, "count", "an integer >= 1", count)
        rounds = [torch.randperm(n, generator=generator) for _ in range(math.ceil(count / n))]
        return self.gather(split, torch.cat(rounds)[:count])[0]


def _chunks(positions: Tensor, length: int) -> Iterator[Tensor]:
    return (positions[start : start + length] for start in range(0, len(positions), length))


def _permutation(n: int, seed: int) -> Tensor:
    # RandomState, for numpy promises that its numbers stay the same in all versions.
    return torch.from_numpy(np.random.RandomState(seed).permutation(n).astype(np.int64))
