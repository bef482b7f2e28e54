"""The images the rows work on, and what to call them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F

from robustbench_sparse.data import DataError, Dataset
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.data.image_folder import ImageFolder
from robustbench_sparse.data.torchvision_sets import CIFAR10, MNIST

ZIP = "cifar10-jpeg.zip"
JPEG = ImageFolder(path=ZIP, label="CIFAR-10 (JPEG)")


def find_root(given: Path | None) -> Path | None:
    """The folder of the data sets: the option, $RBS_DATA, one beside the checkout, or none."""
    if given is not None:
        return given.absolute()
    named = os.environ.get("RBS_DATA")
    if named:
        return Path(named).absolute()
    beside = Path("../shared/data")
    return beside.resolve() if beside.is_dir() else None


def load_colour(root: Path | None) -> Dataset:
    """CIFAR-10, else its JPEG copy, else the embedded digits enlarged to 32 x 32 in three equal channels."""
    if root is not None:
        try:
            return CIFAR10().load(root)
        except DataError:
            if (root / ZIP).is_file():
                return JPEG.load(root)
    digits = Digits().load()

    def enlarge(x: torch.Tensor) -> torch.Tensor:
        return (
            F.interpolate(x.float(), scale_factor=4, mode="nearest").byte().expand(-1, 3, -1, -1).contiguous()
        )

    return Dataset(
        name="digits",
        label="digits enlarged to 32 x 32 RGB (no CIFAR-10 found)",
        train_x=enlarge(digits.train_x),
        train_y=digits.train_y,
        test_x=enlarge(digits.test_x),
        test_y=digits.test_y,
        classes=digits.classes,
    )


def load_mnist(root: Path | None, count: int) -> Dataset:
    """MNIST, else random images of its shape: what an epoch takes does not depend on what they show."""
    if root is not None:
        try:
            return MNIST().load(root)
        except DataError:
            pass
    random = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count + 10, 1, 28, 28), generator=random, dtype=torch.uint8)
    y = torch.arange(count + 10) % 10
    return Dataset(
        name="random",
        label="random images of MNIST's shape (no MNIST found)",
        train_x=x[:count],
        train_y=y[:count],
        test_x=x[count:],
        test_y=y[count:],
        classes=tuple("0123456789"),
    )
