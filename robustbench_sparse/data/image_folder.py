"""A user's own images: a folder or zip of ``train/<class>/<image>`` and ``test/<class>/<image>``, or of a test part."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import PIL
import torch

from attacks.base import LATER, check
from robustbench_sparse.data.base import DataError, Dataset, DatasetSpec, data_root
from robustbench_sparse.data.bounded import MIB, check_regular
from robustbench_sparse.data.cache import read_cache, write_cache
from robustbench_sparse.data.decode import INTERPOLATIONS, Fitting, Interpolation, decode_images
from robustbench_sparse.data.layout import FolderFiles, ZipFiles, arrange
from robustbench_sparse.foundation.files import cache_folder

log = logging.getLogger(__name__)

VERSION = 1  # of what is cached: raise it when the same files would be read in another way


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DatasetSpec):
    """Images in one folder per class, in ``train`` and ``test``; a zip may have one folder around these two.

    For networks that are only judged ``test`` alone is enough, or the classes' folders without anything around them.
    Taken are .jpg, .jpeg, .png, .bmp and .webp. Classes are numbered in the order of their names, images in
    the order of the numbers in theirs ("10.jpg" after "9.jpg"). Decoded images are cached until files change.

    Args:
        path: the folder or .zip, absolute, or relative to the current folder or, where it is not there, the data root.
        size: resize images to ``size`` x ``size`` pixels; without it all must be squares of one size.
        grayscale: read images as one channel in place of three.
        label: the name that tables show; None means the folder's or file's, without its ending.
        max_file_mib: MiB that one file may have, 1 or more.
        max_total_mib: MiB that all of them may have, and take once they are decoded, 1 or more.
        crop: share of the resized image that is kept, in (0, 1], as ``crop_pct`` of timm: the shorter side is resized
            to floor(size / crop) pixels, proportions stay, and ``size`` x ``size`` pixels at the centre are cut out.
            None: the whole image is resized to a square, whatever its proportions.
        interpolation: of resizing: ``bilinear``, ``bicubic``, ``nearest``, ``box``, ``hamming`` or ``lanczos``.
    """

    key: ClassVar[str] = "image_folder"

    path: str
    size: int | None = None
    grayscale: bool = False
    label: str | None = None
    max_file_mib: int = 64
    max_total_mib: int = 8192
    crop: float | None = field(default=None, metadata=LATER)
    interpolation: Interpolation = field(default="bilinear", metadata=LATER)

    def __post_init__(self) -> None:
        check(self.path != "", "path", "a folder or a .zip", self.path)
        check(self.size is None or self.size >= 1, "size", "an integer >= 1", self.size)
        check(self.label != "", "label", "a name", self.label)
        for name in ("max_file_mib", "max_total_mib"):
            check(getattr(self, name) >= 1, name, "an integer >= 1", getattr(self, name))
        check(self.crop is None or 0 < self.crop <= 1, "crop", "a share in (0, 1] or null", self.crop)
        check(self.crop is None or self.size is not None, "crop", "`size` with it", self.crop)
        known = self.interpolation in INTERPOLATIONS
        check(known, "interpolation", f"one of {', '.join(INTERPOLATIONS)}", self.interpolation)

    @property
    def fitting(self) -> Fitting | None:
        """How images are brought to their size; None where they stay as they are."""
        return None if self.size is None else Fitting(self.size, self.crop, self.interpolation)

    def said(self) -> str:
        """How images are resized and cut."""
        return "" if self.fitting is None else self.fitting.said()

    def load(self, root: Path | None = None, cache: Path | None = None) -> Dataset:
        """Read the images, from the cache where no file has changed since.

        Raises:
            DataError: when the path, the layout or an image is not as expected.
        """
        path = self._place(root)
        try:
            if path.is_dir():
                folder = FolderFiles(path, self.max_file_mib * MIB)
                return self._load(path, folder, json.dumps(folder.states), cache)
            state = path.stat()
            check_regular(path, state)
            return self._load(path, None, f"{state.st_size} {state.st_mtime_ns}", cache)
        except FileNotFoundError as error:
            expected = "expected a folder or a .zip (data.path, --data-root or RBS_DATA)"
            raise DataError(f"{error.filename or path} not found: {expected}") from error
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: expected a readable folder or .zip, got: {error}") from error

    def _place(self, root: Path | None) -> Path:
        """Where the images are: beside the user, or else where data sets are."""
        own = Path(self.path).expanduser()  # an absolute path stays as it is, whatever stands before it
        try:
            beside = Path.cwd() / own
            return beside if beside.exists() else data_root(root) / own
        except OSError:  # a name that no file can have, which is said below
            return data_root(root) / own

    def _load(self, path: Path, files: FolderFiles | None, state: str, cache: Path | None) -> Dataset:
        settings = f"{path.resolve()}\n{self.size}\n{self.grayscale}"
        if (self.crop, self.interpolation) != (None, "bilinear"):  # else under the name it always had
            settings += f"\n{self.crop}\n{self.interpolation}"
        stored = cache_folder(cache) / f"images-{_digest(settings)}.safetensors"
        stamp = _digest(f"{VERSION}\n{PIL.__version__}\n{state}")
        dataset = self._cached(path, stored, stamp)
        if dataset is not None:
            return dataset
        if files is not None:
            dataset = self._decoded(path, files)
        else:
            with zipfile.ZipFile(path) as archive:
                dataset = self._decoded(path, ZipFiles(archive, self.max_file_mib * MIB))
        tensors = {name: getattr(dataset, name) for name in ("train_x", "train_y", "test_x", "test_y")}
        texts = {"classes": json.dumps(dataset.classes), "fingerprint": dataset.fingerprint}
        write_cache(stored, stamp, tensors, texts)
        return dataset

    def _cached(self, path: Path, stored: Path, stamp: str) -> Dataset | None:
        found = read_cache(stored, stamp)
        if found is None:
            return None
        tensors, texts = found
        try:
            classes = tuple(json.loads(texts["classes"]))
            dataset = Dataset(name=self.key, label=self._label(path), classes=classes, **tensors)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("cache %s is damaged and is made again: %s", stored, error)
            return None
        if dataset.fingerprint != texts.get("fingerprint"):
            log.warning("cache %s is damaged and is made again: its fingerprint differs", stored)
            return None
        return dataset

    def _decoded(self, path: Path, files: FolderFiles | ZipFiles) -> Dataset:
        found = arrange(files.names(), str(path))
        names = [name for part in found.values() for images in part.values() for name in images]
        labels = [i for part in found.values() for i, images in enumerate(part.values()) for _ in images]
        train = sum(len(images) for images in found["train"].values())
        limit = self.max_total_mib * MIB
        if files.sizes(names) > limit:
            raise DataError(
                f"{path}: its images have more than {self.max_total_mib} MiB (data.max_total_mib)"
            )
        x = torch.from_numpy(
            decode_images(
                names,
                files.read,
                where=str(path),
                fitting=self.fitting,
                grayscale=self.grayscale,
                limit=limit,
            )
        )
        y = torch.tensor(labels, dtype=torch.int64)
        return Dataset(
            name=self.key,
            label=self._label(path),
            train_x=x[:train],
            train_y=y[:train],
            test_x=x[train:],
            test_y=y[train:],
            classes=tuple(found["test"]),
        )

    def _label(self, path: Path) -> str:
        return self.label or (path.name if path.is_dir() else path.stem)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
