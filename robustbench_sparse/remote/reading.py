"""Read a pushed benchmark: every file is fetched by the manifest, and its hash compared, before anything reads it.

What is fetched is kept in the cache folder by its hash, and a benchmark's folder made of it for every manifest.
Nothing is imported or run from there, and nothing read that the manifest does not name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import cache_folder, sha256, write_atomically
from robustbench_sparse.remote.contents import OBJECTS, Contents, Pushed, read_contents
from robustbench_sparse.remote.place import Place, is_remote

_DEPTH = 3  # folders from a benchmark to what may be asked for: itself, runs/, runs/<id>
_AT_ONCE = 8


def local(text: str, cache: Path | None = None) -> Path:
    """A folder as a path: itself, or the verified copy of what was pushed to a place elsewhere.

    Args:
        text: a folder, or the URL of a pushed benchmark, of one of its runs, or of a place with several benchmarks.
        cache: keeps what is fetched; see ``foundation.files.cache_folder``.

    Raises:
        UserError: nothing was pushed there, a file is missing or was changed, or the place cannot be reached.
    """
    if not is_remote(text):
        return Path(text)
    asked = Place.at(text)
    store = cache_folder(cache) / "remote"
    place, inside = asked, ""
    for _ in range(_DEPTH):
        contents = read_contents(place)
        if contents is not None:
            return _copied(store, [(place, contents)], inside) / contents.benchmark / inside
        up = place.parent()
        if up is None:
            break
        inside = f"{place.root.rpartition('/')[2]}/{inside}".rstrip("/")
        place = up
    found = [(asked.inner(name), read_contents(asked.inner(name))) for name in asked.folders()]
    several = [(place, contents) for place, contents in found if contents is not None]
    if not several:
        raise UserError(f"{text}: nothing was pushed here, or not to its end (expected a manifest.json)")
    return _copied(store, several, "")


def _copied(store: Path, pushed: list[tuple[Place, Contents]], inside: str) -> Path:
    """A folder that holds the benchmarks as their manifests say: what is inside, and the tables."""
    wanted = {place: _wanted(contents, inside) for place, contents in pushed}
    for place, files in wanted.items():
        _fetch(store, place, files)
    text = "\n".join(f"{contents.benchmark} {contents.digest()}" for _, contents in pushed)
    name = hashlib.sha256(f"{text}\n{inside}".encode()).hexdigest()[:32]
    target = store / "trees" / name
    if not all(_holds(store, target / c.benchmark, wanted[place]) for place, c in pushed):
        _make_anew(store, target, {c.benchmark: wanted[place] for place, c in pushed})
    return target


def _holds(store: Path, folder: Path, files: Mapping[str, Pushed]) -> bool:
    """Whether a copy has these files, no others, and the bytes that were just looked at."""
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return there.keys() == files.keys() and all(
        path.samefile(store / OBJECTS / files[name].object) or sha256(path) == files[name].sha256
        for name, path in there.items()
    )


def _make_anew(store: Path, target: Path, benchmarks: Mapping[str, Mapping[str, Pushed]]) -> None:
    with tempfile.TemporaryDirectory(dir=_made(target.parent)) as scratch:
        fresh = Path(scratch) / target.name
        for benchmark, files in benchmarks.items():
            for name, about in files.items():
                path = fresh / benchmark / name
                path.parent.mkdir(parents=True, exist_ok=True)
                _linked(store / OBJECTS / about.object, path)
        with contextlib.suppress(FileNotFoundError):  # an older one was changed by hand
            target.rename(Path(scratch) / "old")
        with contextlib.suppress(OSError):  # another process has just put the same one there
            fresh.rename(target)


def _wanted(contents: Contents, inside: str) -> dict[str, Pushed]:
    """Files by name: the benchmark's own, and those of all its runs, or of the one asked for."""
    chosen = {
        name: about
        for name, about in contents.files.items()
        if not inside or "/" not in name or name.startswith(f"{inside}/")
    }
    if inside and not any(name.startswith(f"{inside}/") for name in chosen):
        raise UserError(f"{contents.benchmark}/{inside}: no such run was pushed")
    return chosen


def _fetch(store: Path, place: Place, files: Mapping[str, Pushed]) -> None:
    """Have every file in the store, with the bytes that the manifest says."""
    missing = {}
    for name, about in files.items():
        path = store / OBJECTS / about.object
        if not path.is_file() or path.stat().st_size != about.bytes or sha256(path) != about.sha256:
            missing[about.object] = (name, about)
    sizes = place.sizes(OBJECTS) if missing else {}
    for name, about in missing.values():
        there = sizes.get(about.object)
        if there is None:
            raise UserError(f"{place.url}/{name}: missing, though the manifest names it; push again")
        if there != about.bytes:
            raise _changed(place, name)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(partial(_fetch_one, store, place), missing.values()))


def _fetch_one(store: Path, place: Place, file: tuple[str, Pushed]) -> None:
    name, about = file
    try:
        content = place.inner(OBJECTS).read(about.object)
    except FileNotFoundError:
        raise UserError(f"{place.url}/{name}: missing, though the manifest names it; push again") from None
    if hashlib.sha256(content).hexdigest() != about.sha256:
        raise _changed(place, name)
    write_atomically(store / OBJECTS / about.object, lambda f: f.write(content))


def _changed(place: Place, name: str) -> UserError:
    return UserError(
        f"{place.url}/{name}: changed since it was pushed (its hash is not that in the manifest); "
        "push --verify sends it again"
    )


def _linked(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
