"""Which files of a folder or zip are images of which class."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from robustbench_sparse.data.base import DataError
from robustbench_sparse.data.bounded import check_member, check_regular, read_file, read_member

log = logging.getLogger(__name__)

PARTS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LAYOUT = "train/<class>/<image> and test/<class>/<image>"
PLAIN = "<class>/<image>"


class FolderFiles:
    """Files of a folder on disk.

    Args:
        path: the folder.
        limit: bytes that a file may have.

    Attributes:
        states: names below the folder, those of folders with a final "/", each with a text that changes when
            the file does. Where there is train/ or test/, other folders are not looked into.

    Raises:
        OSError: when something cannot be listed.
        DataError: for something in a folder that is looked into that is neither a folder nor a regular file.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        self.states: dict[str, str] = {}
        tops = _entries(path)
        # As in `arrange`: a name that is train or test but for its case is a slip, and no class.
        parted = any(top.name.lower() in PARTS for top in tops)
        for top in tops:
            self._add(top, top.name)
            if not top.is_dir() or (parted and top.name not in PARTS):
                continue
            for inner in _entries(top.path):
                name = f"{top.name}/{inner.name}"
                self._add(inner, name)
                if parted and inner.is_dir():
                    for file in _entries(inner.path):
                        self._add(file, f"{name}/{file.name}")

    def _add(self, entry: os.DirEntry[str], name: str) -> None:
        state = entry.stat()
        if entry.is_dir():
            self.states[f"{name}/"] = ""
        else:
            if "/" in name or name in PARTS:
                check_regular(entry.path, state)
            self.states[name] = f"{state.st_size} {state.st_mtime_ns}"

    def names(self) -> list[str]:
        """All names."""
        return list(self.states)

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return read_file(self._path / name, self._limit)

    def sizes(self, names: Iterable[str]) -> int:
        """Bytes of some files together."""
        return sum(int(self.states[name].split()[0]) for name in names)


class ZipFiles:
    """Files of a zip, named without the one folder that may stand around all of them.

    Args:
        archive: the zip.
        limit: bytes that a file may have.

    Raises:
        DataError: for a member that lies outside, is a link, or is encrypted.
    """

    def __init__(self, archive: zipfile.ZipFile, limit: int) -> None:
        self._archive, self._limit = archive, limit
        for info in archive.infolist():
            check_member(archive, info)
        members = {info.filename.replace("\\", "/"): info for info in archive.infolist()}
        tops = {name.split("/")[0] for name in members if not _hidden(name)}
        around = f"{tops.pop()}/" if len(tops) == 1 and not tops & set(PARTS) else ""
        self._members = {
            name[len(around) :]: info
            for name, info in members.items()
            if name.startswith(around) and name != around
        }

    def names(self) -> list[str]:
        """All names, those of folders with a final "/"."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """A file's bytes, compared with the checksum in the zip. May be called from several threads."""
        return read_member(self._archive, self._members[name], self._limit)

    def sizes(self, names: Iterable[str]) -> int:
        """Bytes of some files together, as the zip claims."""
        return sum(self._members[name].file_size for name in names)


def arrange(names: Iterable[str], where: str) -> dict[str, dict[str, list[str]]]:
    """Sort file names into parts and classes.

    Args:
        names: names below the data set's folder with "/" between; those of folders end in "/".
        where: stands first in errors.

    Returns:
        For "train" and "test": the images of each class. Classes are in the order of their names, images in
        the order of the numbers in theirs. Without a folder ``train`` there are no training images; without ``test``,
        too, all folders are classes of the test part.

    Raises:
        DataError: when the names do not form ``train/<class>/<image>`` and ``test/<class>/<image>``, ``test/``
            alone, or ``<class>/<image>``.
    """
    seen = [name for name in names if not _hidden(name)]
    tops = {name.split("/")[0] for name in seen}
    folders = {name.split("/")[0] for name in seen if "/" in name}
    plain = bool(folders) and not any(top.lower() in PARTS for top in folders)
    found: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    others: list[str] = []
    for name in seen:
        parts = [*(["test"] if plain else []), *name.rstrip("/").split("/")]
        is_folder, is_image = name.endswith("/"), PurePosixPath(name).suffix.lower() in SUFFIXES
        if parts[0] not in PARTS or (is_folder and len(parts) == 1):
            continue
        if is_folder and len(parts) == 2:
            found[parts[0]].setdefault(parts[1], [])
        elif is_image and not is_folder and len(parts) == 3:
            found[parts[0]].setdefault(parts[1], []).append(name)
        elif is_image or is_folder:
            expected = PLAIN if plain else LAYOUT
            raise DataError(f"{where}: {name} is out of place: expected {expected}")
        else:
            others.append(name)
    if others:
        log.warning("%s: %d files are no images and left out, %s first", where, len(others), others[0])
    _check_classes(found, where, tops, plain)
    return {
        part: {label: sorted(files, key=natural_key) for label, files in sorted(classes.items())}
        for part, classes in found.items()
    }


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sorting key that reads digits as numbers: 9.jpg before 10.jpg."""
    pieces = re.split(r"(\d+)", name.lower())  # text and digits take turns, so like meets like
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name


def _check_classes(found: dict[str, dict[str, list[str]]], where: str, tops: set[str], plain: bool) -> None:
    # A test part alone is enough for a network that is only judged; Train/ beside it is a slip.
    alone = "train" not in {top.lower() for top in tops}
    for part, classes in found.items():
        if not classes and not (part == "train" and alone and found["test"]):
            got = ", ".join(sorted(tops)[:8]) or "nothing"
            raise DataError(
                f"{where}: no class folders in {part}/: expected {LAYOUT}, test/ alone, or {PLAIN}, found {got}"
            )
        for label, files in classes.items():
            if not files:
                place = label if plain else f"{part}/{label}"
                raise DataError(f"{where}: no images in {place}/ (taken are {', '.join(SUFFIXES)})")
    differ = sorted(set(found["train"]) ^ set(found["test"])) if found["train"] else []
    if differ:
        part = "train" if differ[0] in found["train"] else "test"
        raise DataError(f"{where}: classes of train/ and test/ differ: {differ[0]} is in {part}/ only")
    if len(found["test"]) < 2:
        raise DataError(f"{where}: only one class, {next(iter(found['test']))}: expected at least two")


def _hidden(name: str) -> bool:
    """Files that systems leave behind: .DS_Store, ._1.jpg, __MACOSX/."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _entries(path: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted((entry for entry in entries if not _hidden(entry.name)), key=lambda entry: entry.name)
