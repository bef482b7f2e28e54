"""A place elsewhere: a folder of a bucket, or of a disk, that fsspec can reach."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_sparse.foundation.errors import UserError, check_installed, near, one_line
from robustbench_sparse.foundation.files import write_atomically

# What each scheme needs, and the extra that brings it. Chains of several, and those that fetch code or pages, are none.
SCHEMES: dict[str, tuple[tuple[str, ...], str]] = {
    "s3": (("fsspec", "s3fs"), "s3"),
    "gs": (("fsspec", "gcsfs"), "gs"),
    "file": (("fsspec",), "remote"),
    "memory": (("fsspec",), "remote"),
}
_SHOWN = tuple(f"{scheme}://" for scheme in SCHEMES if scheme != "memory")


def is_remote(text: str) -> bool:
    """Whether a text names a place elsewhere, and no folder."""
    return "://" in text


@dataclass(frozen=True)
class Place:
    """A folder elsewhere.

    Attributes:
        url: as the user knows it, without a slash at its end.
        files: the file system, fsspec's.
        root: the folder there.
    """

    url: str
    files: Any
    root: str

    @classmethod
    def at(cls, url: str) -> Place:
        """The folder that a URL names; it need not be there.

        Raises:
            UserError: an unknown scheme, a package that is not installed, or a URL that makes no sense to it.
        """
        scheme = url.partition("://")[0]
        if scheme not in SCHEMES or "::" in url:
            hint = near(f"{scheme}://", _SHOWN)
            raise UserError(f"{url}: expected a place such as {', '.join(_SHOWN)}, got {scheme}://{hint}")
        packages, extra = SCHEMES[scheme]
        check_installed(packages, extra)
        from fsspec.core import url_to_fs

        url = url.rstrip("/")
        with told(url):
            files, root = url_to_fs(url)
        return cls(url, files, str(root).rstrip("/"))

    def inner(self, name: str) -> Place:
        """A folder in it."""
        return Place(f"{self.url}/{name}", self.files, f"{self.root}/{name}")

    def parent(self) -> Place | None:
        """The folder around it; None for a bucket, or the root."""
        up, _, name = self.root.rpartition("/")
        return Place(self.url.rpartition("/")[0], self.files, up) if up and name else None

    def folders(self) -> list[str]:
        """Names of the folders in it, in order; none where it is not there."""
        with told(self.url):
            try:
                found = self.files.ls(self.root, detail=True, refresh=True)
            except FileNotFoundError:
                return []
        return sorted(
            entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory"
        )

    def sizes(self, name: str) -> dict[str, int]:
        """Of all files in a folder of it: names relative to that -> bytes."""
        root = f"{self.root}/{name}"
        with told(f"{self.url}/{name}"):
            self.files.invalidate_cache()
            try:
                found = self.files.find(root, detail=True)
            except FileNotFoundError:
                return {}
        # Names come back as ``root`` is written, but for a slash before it.
        return {
            path.partition(root.lstrip("/") + "/")[2]: int(about["size"]) for path, about in found.items()
        }

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        with told(f"{self.url}/{name}"):
            self.files.invalidate_cache()
            try:
                about = self.files.info(f"{self.root}/{name}")
            except (FileNotFoundError, NotADirectoryError):
                return None
        return int(about["size"]) if about["type"] == "file" else None

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        with told(f"{self.url}/{name}"):
            content: bytes = self.files.cat_file(f"{self.root}/{name}")
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is whole or not there: object stores put it in one piece, on a disk it is renamed."""
        path = f"{self.root}/{name}"
        if self.url.startswith("file://"):
            write_atomically(Path(path), lambda f: f.write(content))
            return
        with told(f"{self.url}/{name}"):
            try:
                self.files.pipe_file(path, content)
            except FileNotFoundError as e:  # of a bucket
                raise UserError(f"{self.url}/{name}: cannot be written: {one_line(e)[:200]}") from None


@contextlib.contextmanager
def told(url: str) -> Iterator[None]:
    """What a file system raises, in one line."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except PermissionError as e:
        raise UserError(f"{url}: no right to do this: {one_line(e)[:200]}") from None
    except Exception as e:  # every kind of store has its own
        raise UserError(f"{url}: cannot be reached: {type(e).__name__}: {one_line(e)[:200]}") from None
