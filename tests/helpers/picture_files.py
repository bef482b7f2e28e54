"""Small folders and zips of images, made up on the spot."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustbench_sparse.data import DataError, Dataset
from robustbench_sparse.data.image_folder import ImageFolder

Files = dict[str, bytes]


def picture(value: int, size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "RGB") -> bytes:
    """An image file of one colour."""
    out = io.BytesIO()
    Image.new(mode, size, value if mode in ("L", "I;16", "F") else (value, value // 2, 0)).save(out, kind)
    return out.getvalue()


def noise(seed: int, side: int = 32) -> bytes:
    """A JPEG with detail everywhere."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def pets(**changes: bytes) -> Files:
    """Two classes, three training images and one test image each, of values 10, 20, ..."""
    files, value = {}, 0
    for part, count in (("train", 3), ("test", 1)):
        for label in ("cat", "dog"):
            for i in range(count):
                value += 10
                files[f"{part}/{label}/{i}.png"] = picture(value)
    return {**files, **changes}


def write_folder(path: Path, files: Files) -> Path:
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


def write_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def load(path: Path, cache: Path | None = None, **settings: Any) -> Dataset:
    return ImageFolder(path=path.name, **settings).load(path.parent, cache or path.parent / "cache")


def error(path: Path, **settings: Any) -> str:
    """The message of the DataError that loading raises: one line, with the path in it."""
    with pytest.raises(DataError) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def without(files: Files, start: str) -> Files:
    return {name: content for name, content in files.items() if not name.startswith(start)}
