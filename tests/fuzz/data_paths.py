"""Odd places of image data: ``python -m tests.fuzz.data_paths``.

Each is given as ``data.path`` (or as the folder of a known data set). It has to be read, or refused in one line that
names it; nothing may hang, fill the memory or be written outside the cache. Exit code 1 where something else came.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from robustbench_sparse.config.load import resolve
from robustbench_sparse.data import DATASETS
from tests.fuzz.common import fault, watched

Make = Callable[[Path], None]


def png(side: int = 8, mode: str = "RGB") -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(path: Path, name: str = "1.png", data: bytes | None = None) -> None:
    """A whole data set of two classes; one image under another name, or with other bytes."""
    for part in ("train", "test"):
        for label in ("a", "b"):
            (path / part / label).mkdir(parents=True)
            (path / part / label / "1.png").write_bytes(png())
    if name != "1.png" or data is not None:
        (path / "train/a/1.png").unlink()
        (path / "train/a" / name).write_bytes(png() if data is None else data)


def archive(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> None:
    """A zip of a whole data set, and of some more members."""
    with zipfile.ZipFile(path, "w", kind) as file:
        for part in ("train", "test"):
            for label in ("a", "b"):
                file.writestr(f"{part}/{label}/1.png", png())
        for name, data in members.items():
            file.writestr(name, data)


def bomb(path: Path) -> None:
    """A member of 1 GiB in a file of 1 MiB."""
    archive(path, {})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file, file.open("train/a/2.png", "w") as member:
        for _ in range(1024):
            member.write(bytes(1 << 20))


def lying(path: Path) -> None:
    """A member that is larger than the zip says."""
    archive(path, {"train/a/2.png": bytes(200 << 20)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 200 << 20), struct.pack("<I", 100)))


def picture_bomb() -> bytes:
    """A picture of 900 million pixels in a few kB."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def with_special(make: Callable[[Path], None], at: str) -> Make:
    """A data set in which a place is taken by something special."""

    def build(path: Path) -> None:
        folder(path)
        place = path / at
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        make(place)

    return build


def listening(path: Path) -> None:
    """A socket."""
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # its name may have 100 characters at most
        made.bind(path.name)
        os.chdir(here)


def link_to(target: str) -> Callable[[Path], None]:
    """A link to a place."""
    return lambda path: path.symlink_to(target)


def linked(path: Path) -> None:
    """A member that is a link."""
    archive(path, {})
    link = zipfile.ZipInfo("train/a/2.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/dev/zero")


def encrypted(path: Path) -> None:
    """Members that want a password."""
    archive(path, {})
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + flags] |= 1
    path.write_bytes(data)


def postscript() -> bytes:
    """A picture that other programs would be started for."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")
    return buffer.getvalue()


def hole(path: Path) -> None:
    """An image of 100 GiB that takes no space."""
    folder(path)
    os.truncate(path / "train/a/1.png", 100 << 30)


def many(path: Path) -> None:
    """More pixels than there may be: 40 000 links to one picture of 512 x 512."""
    folder(path, data=png(512))
    for part, label in (("train", "b"), ("test", "a"), ("test", "b")):
        (path / part / label / "1.png").write_bytes(png(512))
    for i in range(40_000):
        os.link(path / "train/a/1.png", path / f"train/a/{i + 2}.png")


PLACES: dict[str, Make] = {
    "whole": folder,
    "whole.zip": lambda p: archive(p, {}),
    "missing": lambda p: None,
    "empty folder": lambda p: p.mkdir(),
    "empty.zip": lambda p: p.write_bytes(b""),
    "text.zip": lambda p: p.write_text("hello"),
    "page.zip": lambda p: p.write_text("<!DOCTYPE html>"),
    "no members.zip": lambda p: zipfile.ZipFile(p, "w").close(),
    "cut.zip": lambda p: (archive(p, {}), p.write_bytes(p.read_bytes()[:300]))[0],
    "pipe": os.mkfifo,
    "pipe.zip": os.mkfifo,
    "socket": listening,
    "device": link_to("/dev/zero"),
    "null.zip": link_to("/dev/null"),
    "loop": lambda p: p.symlink_to(p),
    "dangling": link_to("/no/such/place"),
    "root": link_to("/"),
    "proc": link_to("/proc/self/fd"),
    "class is a pipe": with_special(os.mkfifo, "train/a"),
    "class is a device": with_special(link_to("/dev/zero"), "train/a"),
    "class is a loop": with_special(lambda p: p.symlink_to(p), "train/a"),
    "part is a file": with_special(lambda p: p.write_text("x"), "val"),
    "image is a pipe": with_special(os.mkfifo, "train/a/1.png"),
    "image is a device": with_special(link_to("/dev/zero"), "train/a/1.png"),
    "image is random": with_special(link_to("/dev/urandom"), "train/a/1.png"),
    "image is a socket": with_special(listening, "train/a/1.png"),
    "image is a loop": with_special(lambda p: p.symlink_to(p), "train/a/1.png"),
    "image is dangling": with_special(link_to("/no/such"), "train/a/1.png"),
    "image is a folder": with_special(lambda p: p.mkdir(), "train/a/1.png"),
    "image is empty": lambda p: folder(p, data=b""),
    "image is text": lambda p: folder(p, data=b"hello"),
    "image is cut": lambda p: folder(p, data=png(64)[:60]),
    "image is huge": lambda p: folder(p, data=picture_bomb()),
    "image is wide": lambda p: folder(p, data=png(9)),
    "image has 16 bits": lambda p: folder(p, data=png(8, "I;16")),
    "name with escapes": lambda p: folder(p, "\x1b[31m\n.png", b"x"),
    "name is long": lambda p: folder(p, "x" * 250 + ".png", b"x"),
    "bomb.zip": bomb,
    "lying.zip": lying,
    "nested.zip": lambda p: archive(p, {"train/a/more.zip": png()}),
    "outside.zip": lambda p: archive(p, {"../../../tmp/escaped.png": png(), "/etc/escaped.png": png()}),
    "absolute.zip": lambda p: archive(p, {"/train/a/2.png": png()}),
    "parent.zip": lambda p: archive(p, {"train/a/../../2.png": png()}),
    "linked.zip": linked,
    "encrypted.zip": encrypted,
    "part is a pipe": with_special(os.mkfifo, "test"),
    "note is a pipe": with_special(os.mkfifo, "train/a/notes.txt"),
    "image is PostScript": lambda p: folder(p, data=postscript()),
    "image has a hole": hole,
    "x" * 300: lambda p: None,
    "\x1b]0;\nname.zip": lambda p: p.write_bytes(b"x"),
    "deep.zip": lambda p: archive(p, {"train/a/b/c/1.png": png()}),
    "many": many,
}


def main(without: Sequence[str] = ()) -> list[str]:
    """Try every place, or all but some; everything that went wrong, a line each."""
    with tempfile.TemporaryDirectory() as scratch, watched() as found:
        os.environ["RBS_CACHE"] = str(Path(scratch) / "cache")  # nothing of this is worth keeping
        for name, make in PLACES.items():
            if name in without:
                continue
            place = Path(scratch) / name
            make(place)
            before = everything(Path(scratch))
            raw = {
                "name": "x",
                "data": {"name": "image_folder", "path": str(place), "max_total_mib": 1024},
                "attacks": {"fgsm": "fgsm"},
                "train": {"epochs": 1, "selection": "last"},
                "runs": {"a": {"model": "mlp"}},
            }
            calls = [lambda raw=raw: resolve(raw).dataset.load(None, None)]
            if not name.startswith("whole"):
                calls += [lambda p=place, n=n: DATASETS[n]().load(p, None) for n in ("mnist", "cifar10")]
            known = re.escape(str(Path(scratch)))  # the name itself may be cut, or hold what no line may
            found += [f"{name!r}: {problem}" for call in calls if (problem := fault(call, known))]
            found += [f"{name}: wrote {p}" for p in everything(Path(scratch)) - before if "cache" not in p]
    return found


def everything(folder: Path) -> set[str]:
    """All names below a folder, without following links."""
    return {os.path.join(top, n) for top, dirs, files in os.walk(folder) for n in (*dirs, *files)}  # noqa: PTH118


if __name__ == "__main__":
    problems = main()
    print("\n".join(problems))
    print(f"{len(PLACES)} places, {len(problems)} faults")
    sys.exit(1 if problems else 0)
