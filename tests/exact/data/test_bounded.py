"""Data folders made to harm: what is no regular file, too large, or claims to be anything."""

from __future__ import annotations

import io
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustbench_sparse.data import DATASETS, DataError
from robustbench_sparse.data.bounded import MIB
from robustbench_sparse.data.decode import decode_images
from robustbench_sparse.data.image_folder import ImageFolder
from tests.helpers.picture_files import error, load, pets, picture, write_folder, write_zip


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name may have 100 characters at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a device": lambda path: path.symlink_to("/dev/null"),
    "a socket": listening,
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("place", ["train/cat/9.png", "train/cat/notes.txt", "train/cow", "test"])
def test_what_is_no_regular_file_is_named_and_not_opened(tmp_path: Path, kind: str, place: str) -> None:
    path = write_folder(tmp_path / "x", pets())
    if place == "test":
        (path / "test").rename(tmp_path / "away")
    SPECIAL[kind](path / place)
    assert error(path) == f"{path / place}: expected a regular file, got {kind}"


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_path_that_is_no_regular_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.zip"
    SPECIAL[kind](path)
    assert error(path) == f"{path}: expected a regular file, got {kind}"


def test_a_file_that_becomes_a_pipe_after_it_was_listed_does_not_block(tmp_path: Path) -> None:
    from robustbench_sparse.data.layout import FolderFiles

    path = write_folder(tmp_path / "x", pets())
    files = FolderFiles(path, MIB)
    (path / "train/cat/0.png").unlink()
    os.mkfifo(path / "train/cat/0.png")
    with pytest.raises(DataError, match=r"0\.png: expected a regular file, got a pipe"):
        files.read("train/cat/0.png")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_file_may_have_so_many_mib(tmp_path: Path, kind: str) -> None:
    files = pets(**{"train/dog/1.png": picture(50) + bytes(MIB)})  # what follows an image is not read
    path = write_folder(tmp_path / "x", files) if kind == "folder" else write_zip(tmp_path / "x.zip", files)
    assert "train/dog/1.png: larger than 1 MiB (data.max_file_mib)" in error(path, max_file_mib=1)
    assert len(load(path, max_file_mib=2).train_y) == 6


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_all_files_may_have_so_many_mib(tmp_path: Path, kind: str) -> None:
    files = {name: content + bytes(MIB // 7) for name, content in pets().items()}
    path = write_folder(tmp_path / "x", files) if kind == "folder" else write_zip(tmp_path / "x.zip", files)
    assert error(path, max_total_mib=1) == f"{path}: its images have more than 1 MiB (data.max_total_mib)"
    assert len(load(path, max_total_mib=2).train_y) == 6


def test_a_member_of_a_zip_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/dog/9.png", bytes(8 * MIB))
    assert path.stat().st_size < MIB / 10
    assert "train/dog/9.png: larger than 1 MiB (data.max_file_mib)" in error(path, max_file_mib=1)


def test_decoded_images_count_too(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", dict.fromkeys(pets(), picture(1, (300, 300))))  # 8 of 270 000 bytes
    small = sum(map(len, dict.fromkeys(pets(), picture(1, (300, 300))).values()))
    assert small < MIB / 10
    assert "8 images of 300 x 300 pixels: 2 MiB, more than 1 MiB (data.max_total_mib)" in error(
        path, max_total_mib=1
    )
    assert load(path, max_total_mib=3).size == 300


def test_more_than_the_memory_that_is_free_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    monkeypatch.setattr("robustbench_sparse.data.bounded.available_memory", lambda: 8 * 3 * 64 - 1)
    assert "and 0 MiB of memory are free" in error(path)
    monkeypatch.setattr("robustbench_sparse.data.bounded.available_memory", lambda: 8 * 3 * 64)
    assert len(load(path).train_y) == 6


def test_a_size_is_checked_before_any_image_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    monkeypatch.setattr(Image.Image, "resize", lambda *_: pytest.fail("resized"))
    assert "8 images of 1000000 x 1000000 pixels" in error(path, size=10**6)


def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # 8193 x 8192 grey pixels that are really there: 64 MiB in a file of 64 KiB.
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8193, 8192, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(8192 * 8194), 9))
    bomb = b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")
    message = error(write_zip(tmp_path / "x.zip", pets(**{"train/dog/1.png": bomb})), size=8)
    assert "train/dog/1.png: not a readable image: 8193 x 8192 pixels are more than 67108864" in message


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_sparse.data.decode.LARGE_PIXELS", 63)
    monkeypatch.setattr("robustbench_sparse.data.decode.SMALL_FILE", 0)
    monkeypatch.setattr("robustbench_sparse.data.decode.BLOCK", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    inside, most, convert = [0], [0], Image.Image.convert

    def counted(image: Image.Image, mode: str) -> Image.Image:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        for _ in range(20):
            os.sched_yield()
        out = convert(image, mode)
        inside[0] -= 1
        return out

    monkeypatch.setattr(Image.Image, "convert", counted)
    content = picture(7)
    names = [str(i) for i in range(64)]
    out = decode_images(names, lambda _: content, where="x", fitting=None, grayscale=False, limit=MIB)
    assert most == [1]
    assert np.array_equal(out[:, 0], np.full((64, 8, 8), 7))


def test_formats_that_start_programs_are_not_read(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "EPS")
    message = error(write_zip(tmp_path / "x.zip", pets(**{"train/dog/1.png": out.getvalue()})))
    assert "train/dog/1.png: not a readable image: cannot identify" in message


@pytest.mark.parametrize(
    "name",
    [
        "../9.png",
        "train/cat/../9.png",
        "/train/cat/9.png",
        "train//9.png",
        "C:\\cat\\9.png",
        "a/../../notes.txt",
    ],
)
def test_names_outside_a_zip_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "x.zip", {**pets(), name: picture(1)})
    shown = name.replace("\\", "/")
    assert error(path) == f"{path}: {shown}: expected a name below the zip's own folder"


@pytest.mark.parametrize("name", ["train/cat/9.png", "train/cow"])
def test_links_in_a_zip_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo(name)
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/hostname")
    assert error(path) == f"{path}: {name}: expected a regular file, got a link"


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert error(path) == f"{path}: train/cat/0.png: expected a file that is not encrypted"


def test_a_zip_in_a_zip_is_no_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = write_zip(tmp_path / "inner.zip", pets()).read_bytes()
    assert len(load(write_zip(tmp_path / "x.zip", pets(**{"train/cat/more.zip": inner}))).train_y) == 6
    assert "1 files are no images and left out, train/cat/more.zip first" in caplog.text


def test_limits_leave_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    first = load(path)
    monkeypatch.setattr(
        "robustbench_sparse.data.image_folder.decode_images", lambda *_, **__: pytest.fail("read")
    )
    assert load(path, max_file_mib=1, max_total_mib=1).fingerprint == first.fingerprint


@pytest.mark.parametrize("name", ["max_file_mib", "max_total_mib"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        ImageFolder(path="x", **{name: 0})


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    ("key", "name", "download"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte", False),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz", True),
        ("cifar10", "cifar-10-batches-py/data_batch_1", False),
        ("cifar10", "cifar-10-python.tar.gz", True),
    ],
)
def test_known_sets_open_regular_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, key: str, name: str, download: bool
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("went to the network"))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    SPECIAL[kind](tmp_path / name)
    with pytest.raises(DataError) as caught:
        DATASETS[key](download=download).load(tmp_path)
    assert str(caught.value) == f"{tmp_path / name}: expected a regular file, got {kind}"
