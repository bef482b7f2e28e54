"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 in torchvision's folders, downloaded only when asked for."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import torch
from torch import Tensor

from robustbench_sparse.data.base import DataError, Dataset, DatasetSpec, data_root
from robustbench_sparse.data.bounded import MIB, check_regular

LARGEST = 1024 * MIB  # bytes of an IDX file; the real ones have 45 MiB at most


@dataclass(frozen=True, kw_only=True)
class TorchvisionSpec(DatasetSpec):
    """A data set that torchvision reads.

    Args:
        download: let torchvision fetch the files into the data root when they are not there.
    """

    label: ClassVar[str]
    source_name: ClassVar[str]  # the class in torchvision.datasets

    download: bool = False

    def load(self, root: Path | None = None, cache: Path | None = None) -> Dataset:
        """Read the data set from torchvision's folder under ``root``; ``cache`` is not needed.

        Raises:
            DataError: when files are missing, damaged or no regular files, or the download failed.
        """
        folder = data_root(root)
        try:
            return self._load(folder)
        except OSError as error:
            raise DataError(f"{self.label} under {folder} cannot be read: {error}") from error

    def _load(self, folder: Path) -> Dataset:
        import torchvision.datasets  # slow to import, and only these data sets need it

        source = getattr(torchvision.datasets, self.source_name)
        if hasattr(source, "_check_legacy_exist"):  # a folder ``processed``, which would be read unverified
            source = type(source.__name__, (source,), {"_check_legacy_exist": lambda _: False})
        paths = [path for path, _ in self.files(source, folder)]
        for path in (*paths, *self.packed(source, folder)):
            if path.exists():
                check_regular(path, path.stat())
        missing = [path for path in paths if not path.exists()]
        if missing and not self.download:
            raise DataError(
                f"{self.label} not found under {folder} (--data-root or RBS_DATA): {missing[0]} is missing; "
                "set `data.download: true` to download it, or name the folder that holds it"
            )
        if missing:
            try:
                source(folder, train=True, download=True)
            except (RuntimeError, URLError, OSError) as error:
                reason = " ".join(str(error).split())
                raise DataError(f"{self.label}: download to {folder} failed: {reason}") from error
        self.verify(source, folder)
        train, test = (source(folder, train=part, download=False) for part in (True, False))
        (train_x, train_y), (test_x, test_y) = self.tensors(train), self.tensors(test)
        try:
            return Dataset(
                name=self.key,
                label=self.label,
                train_x=train_x,
                train_y=train_y,
                test_x=test_x,
                test_y=test_y,
                classes=tuple(train.classes),
            )
        except ValueError as error:
            raise DataError(f"{self.label} under {folder} is not as expected: {error}") from error

    @abstractmethod
    def files(self, source: Any, folder: Path) -> list[tuple[Path, str | None]]:
        """The files of the data set and their MD5 where it is known."""

    @abstractmethod
    def packed(self, source: Any, folder: Path) -> list[Path]:
        """The files that a download would write first."""

    @abstractmethod
    def verify(self, source: Any, folder: Path) -> None:
        """Raise DataError, naming the file, when one is damaged."""

    @abstractmethod
    def tensors(self, part: Any) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, C, S, S) and labels int64 (N,) of a torchvision data set."""


@dataclass(frozen=True, kw_only=True)
class MNIST(TorchvisionSpec):
    """MNIST (LeCun et al. 1998): 60 000 + 10 000 grey images of 28 x 28, in ``MNIST/raw``."""

    key: ClassVar[str] = "mnist"
    label: ClassVar[str] = "MNIST"
    source_name: ClassVar[str] = "MNIST"

    def files(self, source: Any, folder: Path) -> list[tuple[Path, str | None]]:
        """The four unpacked IDX files: torchvision knows the checksums of the packed ones only."""
        raw = folder / self.source_name / "raw"
        return [(raw / Path(name).stem, None) for name, _ in source.resources]

    def packed(self, source: Any, folder: Path) -> list[Path]:
        """The same, packed one by one."""
        return [folder / self.source_name / "raw" / name for name, _ in source.resources]

    def verify(self, source: Any, folder: Path) -> None:
        """Compare the length of each IDX file with its header, and the counts of images and labels."""
        shapes = {path.name: _idx_shape(path) for path, _ in self.files(source, folder)}
        for part in ("train", "t10k"):
            images, labels = shapes[f"{part}-images-idx3-ubyte"], shapes[f"{part}-labels-idx1-ubyte"]
            if images[:1] != labels:
                raise DataError(
                    f"{self.label}: {folder / self.source_name / 'raw'} holds {images[0]} {part} images "
                    f"but {labels[0]} labels"
                )

    def tensors(self, part: Any) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 1, 28, 28) and labels int64 (N,)."""
        return part.data[:, None], part.targets.long()


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(MNIST):
    """Fashion-MNIST (Xiao et al. 2017): 60 000 + 10 000 grey images of 28 x 28, in ``FashionMNIST/raw``."""

    key: ClassVar[str] = "fashion_mnist"
    label: ClassVar[str] = "Fashion-MNIST"
    source_name: ClassVar[str] = "FashionMNIST"


@dataclass(frozen=True, kw_only=True)
class CIFAR10(TorchvisionSpec):
    """CIFAR-10 (Krizhevsky 2009): 50 000 + 10 000 RGB images of 32 x 32, in ``cifar-10-batches-py``."""

    key: ClassVar[str] = "cifar10"
    label: ClassVar[str] = "CIFAR-10"
    source_name: ClassVar[str] = "CIFAR10"

    def files(self, source: Any, folder: Path) -> list[tuple[Path, str | None]]:
        """The pickled batches and the class names, with torchvision's checksums."""
        listed = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
        return [(folder / source.base_folder / name, md5) for name, md5 in listed]

    def packed(self, source: Any, folder: Path) -> list[Path]:
        """All of them in one archive."""
        return [folder / source.filename]

    def verify(self, source: Any, folder: Path) -> None:
        """Compare checksums: the files are pickles, and only the originals may be opened."""
        from torchvision.datasets.utils import check_integrity

        for path, md5 in self.files(source, folder):
            if not check_integrity(path, md5):
                raise DataError(f"{path}: damaged, its MD5 is not {md5}; remove it and download it again")

    def tensors(self, part: Any) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 3, 32, 32) and labels int64 (N,)."""
        x = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()  # torchvision's are (N, 32, 32, 3)
        return x, torch.tensor(part.targets, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class CIFAR100(CIFAR10):
    """CIFAR-100 (Krizhevsky 2009): 50 000 + 10 000 RGB images of 32 x 32, in ``cifar-100-python``."""

    key: ClassVar[str] = "cifar100"
    label: ClassVar[str] = "CIFAR-100"
    source_name: ClassVar[str] = "CIFAR100"


def _idx_shape(path: Path) -> tuple[int, ...]:
    """The shape in an IDX header; DataError when the file is not as long as that shape needs."""
    dims = 3 if "idx3" in path.name else 1
    with path.open("rb") as file:
        header = file.read(4 + 4 * dims)
    if len(header) < 4 + 4 * dims or header[:4] != bytes((0, 0, 8, dims)):
        raise DataError(
            f"{path}: damaged, no IDX header of {dims}-dimensional bytes; remove it and get it again"
        )
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4))
    expected, got = len(header) + math.prod(shape), path.stat().st_size
    if got != expected:
        raise DataError(f"{path}: damaged, expected {expected} bytes, got {got}; remove it and get it again")
    if got > LARGEST:
        raise DataError(f"{path}: expected at most {LARGEST} bytes, got {got}")
    return shape
