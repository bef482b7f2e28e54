"""Push finished runs to a place elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.remote.contents import OBJECTS, Contents, Pushed, read_contents
from robustbench_sparse.remote.place import Place
from robustbench_sparse.reporting.leaderboard import tabulate
from robustbench_sparse.runs import names
from robustbench_sparse.runs.seals import Seals

_ENDED = ("ok", "diverged", "refused")  # how the status of a row begins to which nothing will be added
_TABLES = (names.BENCHMARK, names.LEADERBOARD, names.LEADERBOARD_SEEDS, names.LEADERBOARD_TEXT)
_AT_ONCE = 8  # files on their way


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a push did.

    Attributes:
        url: where the benchmark is now.
        runs: finished ones.
        left: rows that are not finished.
        files, bytes: sent now.
        there: files that were there already.
    """

    url: str
    runs: int
    left: int
    files: int
    bytes: int
    there: int


def push(
    results: Path, url: str, show: Progress, *, replace: bool = False, verify: bool = False
) -> list[Sent]:
    """Push the finished runs of a benchmark, or of every benchmark in a folder, to ``<url>/<benchmark>``.

    What is there already, of the same hash and length, is not sent again; so a push that was ended goes on. Several at
    once end with a whole manifest, that of the last one.

    Args:
        results: ``results/<benchmark>``, or ``results``.
        url: the place.
        show: where progress goes.
        replace: let another table of the same name take the place of the one that is there.
        verify: read what is there, and send again what was changed.

    Raises:
        UserError: no benchmark with a finished run; a file that was changed; a place that cannot be written, that lies
            within the results, or holds another table of this name.
    """
    folders = _benchmarks(results)
    place = Place.at(url)
    _check_apart(results, place)
    return [_push(folder, place.inner(folder.name), show, replace, verify) for folder in folders]


def _benchmarks(results: Path) -> list[Path]:
    results = results.absolute()
    if (results / names.BENCHMARK).is_file():
        return [results]
    found = [path.parent for path in sorted(results.glob(f"*/{names.BENCHMARK}"))]
    if not found:
        raise UserError(
            f"{results}: no benchmark here (expected {names.BENCHMARK} in it or in its subfolders)"
        )
    return found


def _check_apart(results: Path, place: Place) -> None:
    """UserError for a place in the folder that is pushed."""
    if place.url.startswith("file://") and Path(place.root).resolve().is_relative_to(results.resolve()):
        raise UserError(f"{place.url}: lies within {results}: expected a place apart from it")


def _push(folder: Path, place: Place, show: Progress, replace: bool, verify: bool) -> Sent:
    table = tabulate(folder)  # whatever was changed since it was stored ends it here
    ended = table["status"].map(lambda status: str(status).startswith(_ENDED))
    runs = list(dict.fromkeys(table.loc[ended, "run_id"]))
    if not runs:
        raise UserError(f"{folder}: no finished run yet: nothing to push")
    files = {name: folder / name for name in _files(folder, runs)}
    contents = Contents(benchmark=folder.name, files={n: _pushed(p.read_bytes()) for n, p in files.items()})
    _check_same_table(folder, place, replace)
    there = place.sizes(OBJECTS)
    todo = {
        f.object: (files[n], f) for n, f in contents.files.items() if verify or there.get(f.object) != f.bytes
    }
    bar = show.start(place.url, sum(f.bytes for _, f in todo.values()), "bytes")
    sent, amount = 0, 0
    try:
        for size, was_sent in _all(todo, lambda path, f: _send(place, path, f, verify and f.object in there)):
            sent, amount = sent + was_sent, amount + size * was_sent
            bar.advance(size)
    finally:
        bar.close()
    contents.write(place)
    return Sent(
        url=place.url, runs=len(runs), left=len(table) - len(runs), files=sent, bytes=amount,
        there=len({f.object for f in contents.files.values()}) - sent,
    )  # fmt: skip


def _files(folder: Path, runs: list[str]) -> Iterator[str]:
    """Names of all that is pushed, within the benchmark's folder: what counts of every run, and the tables."""
    yield from (name for name in _TABLES if (folder / name).is_file())
    for run in runs:
        home = folder / names.RUNS / run
        counted = Seals(home).hashes()
        beside = [
            name for name in (names.RECORD, names.SPEED) if name not in counted and (home / name).is_file()
        ]
        yield from (f"{names.RUNS}/{run}/{name}" for name in (*counted, *beside))


def _pushed(content: bytes) -> Pushed:
    return Pushed(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _check_same_table(folder: Path, place: Place, replace: bool) -> None:
    """UserError where the place holds a table that was made by another config, unless that is meant."""
    if replace:
        return
    there = read_contents(place)
    about = there and there.files.get(names.BENCHMARK)
    if not about:
        return
    try:
        theirs: Any = json.loads(place.inner(OBJECTS).read(about.object))
        same = theirs["table"] == read_json(folder / names.BENCHMARK)["table"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # damaged: it is mended by this push
        return
    if not same:
        raise UserError(
            f"{place.url}: holds another table of this name; --replace lets this one take its place"
        )


def _send(place: Place, path: Path, file: Pushed, there: bool) -> bool:
    """Send a file, unless it is there with the same bytes; whether it was sent."""
    objects = place.inner(OBJECTS)
    if there and _pushed(objects.read(file.object)) == file:
        return False
    content = path.read_bytes()
    if _pushed(content) != file:
        raise UserError(f"{path}: changed while it was pushed; push again")
    objects.write(file.object, content)
    return True


def _all(
    todo: dict[str, tuple[Path, Pushed]], send: Callable[[Path, Pushed], bool]
) -> Iterator[tuple[int, bool]]:
    """Send all files, some at a time: of each its bytes, and whether it was sent, as they come."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        on_way = {threads.submit(send, path, file): file.bytes for path, file in todo.values()}
        try:
            for done in as_completed(on_way):
                yield on_way[done], done.result()
        except OSError as e:
            raise UserError(f"cannot be read: {one_line(e)}") from None
        finally:
            for one in on_way:
                one.cancel()
