"""The cache of decoded images: used when nothing changed, made again when anything is wrong."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.picture_files import load, pets, picture, write_folder, write_zip


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that images were decoded."""
    import robustbench_sparse.data.image_folder as module

    calls: list[int] = []
    decode = module.decode_images

    def counted(names: list[str], *args: Any, **kwargs: Any) -> Any:
        calls.append(len(names))
        return decode(names, *args, **kwargs)

    monkeypatch.setattr(module, "decode_images", counted)
    return calls


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_are_decoded_once(tmp_path: Path, decoded: list[int], kind: str) -> None:
    path = write_folder(tmp_path / "x", pets()) if kind == "folder" else write_zip(tmp_path / "x.zip", pets())
    first, second = load(path), load(path, label="Other name")
    assert decoded == [8]
    assert (first.label, second.label) == ("x", "Other name")
    assert first.fingerprint == second.fingerprint
    assert first.classes == second.classes
    for name in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_other_settings_have_a_cache_of_their_own(tmp_path: Path, decoded: list[int]) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    assert [load(path, **s).train_x.shape[1:] for s in ({}, {"size": 9}, {"grayscale": True}, {})] == [
        *((3, 8, 8), (3, 9, 9), (1, 8, 8), (3, 8, 8))
    ]
    assert len(decoded) == 3


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_changed_files_are_decoded_again(tmp_path: Path, decoded: list[int], kind: str) -> None:
    def write(value: int, moment: int) -> Path:
        files = pets(**{"train/cat/1.png": picture(value)})
        if kind == "zip":
            changed = path = write_zip(tmp_path / "x.zip", files)
        else:
            path = write_folder(tmp_path / "x", files)
            for file in path.rglob("*.png"):
                os.utime(file, ns=(0, 0))
            changed = path / "train/cat/1.png"
        os.utime(changed, ns=(moment, moment))
        return path

    before = load(write(100, 1))
    after = load(write(101, 2))
    assert (before.train_x[1, 0, 0, 0], after.train_x[1, 0, 0, 0]) == (100, 101)
    assert len(decoded) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 1, "the old one is replaced"


def test_a_new_file_in_a_folder_is_seen(tmp_path: Path, decoded: list[int]) -> None:
    path = write_folder(tmp_path / "x", pets())
    load(path)
    (path / "test/dog/7.png").write_bytes(picture(7))
    assert len(load(path).test_y) == 3
    assert decoded == [8, 9]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "foreign"])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, decoded: list[int], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    expected = load(path).fingerprint
    file = only_file(tmp_path / "cache")
    content = file.read_bytes()
    flipped = content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]
    foreign = content.replace(b'"classes"', b'"klasses"')
    file.write_bytes(
        {"cut": content[:-9], "flipped": flipped, "empty": b"", "text": b"x" * 99, "foreign": foreign}[damage]
    )
    assert load(path).fingerprint == expected
    assert "is made again" in caplog.text
    assert len(decoded) == 2
    assert load(path).fingerprint == expected
    assert len(decoded) == 2, "the new cache is whole"


def test_without_a_writable_cache_it_goes_on(
    tmp_path: Path, decoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert len(load(path, blocked / "cache").train_y) == 6
    assert "cannot be written, going on without it" in caplog.text
    assert len(decoded) == 1


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert len(load(write_zip(tmp_path / "x.zip", pets())).train_y) == 6
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_at_once_get_the_same(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", pets())
    prints: list[str] = []
    threads = [threading.Thread(target=lambda: prints.append(load(path).fingerprint)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert prints == [load(path).fingerprint] * 4
