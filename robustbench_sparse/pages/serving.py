"""Serve a report of results that are still being made: on this machine alone, read-only, renewed as rows come in."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.pages.boards import ZOO
from robustbench_sparse.pages.writing import CHARTS, INDEX, Wishes, write_report
from robustbench_sparse.reporting.memo import Memo, stamp_of
from robustbench_sparse.runs import names

HOST = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")  # names that a browser may ask for: another one leads here from elsewhere
EVERY, QUIET = (
    0.4,
    6.0,
)  # seconds between looks at the folder; without a change until charts and runs are made anew
VERSION = "version.json"
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".json": "application/json", ".svg": "image/svg+xml", ".png": "image/png", ".csv": "text/csv; charset=utf-8",
    ".md": "text/markdown; charset=utf-8", ".tex": "text/plain; charset=utf-8", ".bib": "text/plain; charset=utf-8",
}  # fmt: skip
# What a row is made of; others come and go while it is being worked on.
_WATCHED = (names.BENCHMARK, names.LEADERBOARD, f"{names.RUNS}/*/{names.RECORD}")


@dataclass
class Watched:
    """Results, and the report that is made of them.

    Attributes:
        places: as for ``writing.write_report``.
        out: the report's folder.
        wishes: for it.
        say: told what could not be read, once.
        version: raised whenever the pages have changed.
    """

    places: Sequence[Path | str]
    out: Path
    wishes: Wishes
    say: Callable[[str], None]
    version: int = 0
    _stamp: object = None
    _filled: object = None
    _changed: float = 0.0
    _more: bool = False
    _problem: str = ""
    _filler: threading.Thread | None = None
    _over: threading.Event = field(default_factory=threading.Event)
    _memo: Memo = field(default_factory=Memo)

    def look(self) -> bool:
        """Make the leaderboard anew where something has changed; whether it was.

        What cannot be read, as it is being written, leaves the pages as they are until the next look.
        """
        stamp = stamp_of(watched_files(self.places))
        if stamp == self._stamp and not self._more:
            return False
        self._more, changed = False, stamp != self._stamp
        linked = (self.out / CHARTS).is_file()  # charts and pages that were made earlier stay linked
        wishes = replace(self.wishes, runs=False, charts=False, charts_linked=linked)
        if not self._made(wishes):
            return False
        self._stamp = stamp
        self._changed = time.monotonic() if changed else self._changed
        self.version += 1
        return True

    def fill(self) -> None:
        """Make charts and pages of runs of what is there now; the next look links them."""
        stamp = stamp_of(watched_files(self.places))
        if self._made(replace(self.wishes, index=False)):
            self._filled, self._more = stamp, True

    def _made(self, wishes: Wishes) -> bool:
        try:
            write_report(self.places, self.out, replace(wishes, memo=self._memo))
        except UserError as e:
            if one_line(e) != self._problem:
                self._problem = one_line(e)
                self.say(self._problem)
            return False
        self._problem = ""
        return True

    def keep_looking(self) -> None:
        """``look`` until ``stop``, and ``fill`` beside it once nothing has changed for some seconds."""
        while not self._over.wait(EVERY):
            self.look()
            quiet = time.monotonic() - self._changed > QUIET
            working = self._filler is not None and self._filler.is_alive()
            if quiet and not working and self._filled != self._stamp:
                # Beside: a row that comes in meanwhile does not wait for the charts of the others.
                self._filler = threading.Thread(target=self.fill, daemon=True)
                self._filler.start()

    @property
    def problem(self) -> str:
        """Why the last pages could not be made; empty where they were."""
        return self._problem

    def stop(self) -> None:
        """End ``keep_looking``."""
        self._over.set()
        if self._filler is not None:
            self._filler.join(timeout=60)


def watched_files(places: Sequence[Path | str]) -> set[Path]:
    """The files that the results' rows are made of, and that change with them."""
    homes = [Path(place) for place in places if str(place) != ZOO]
    patterns = [f"{below}{pattern}" for pattern in _WATCHED for below in ("", "*/")]
    return {path for home in homes for pattern in patterns for path in home.glob(pattern)}


class _Handler(BaseHTTPRequestHandler):
    """Files of one folder, to be read only; and the version of the pages."""

    server_version, sys_version = "robustbench-sparse", ""

    def __init__(self, watched: Watched, *args: object) -> None:
        self.watched = watched
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """A file, or the version."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """The same without its content."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        path = unquote(urlsplit(self.path).path).lstrip("/") or INDEX
        if host not in HOSTS:
            self.send_error(HTTPStatus.FORBIDDEN)
        elif path == VERSION:
            self._send(json.dumps({"version": self.watched.version}).encode(), ".json", body)
        elif (file := inside(self.watched.out, path)) is not None:
            self._send(file.read_bytes(), file.suffix, body)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, content: bytes, kind: str, body: bool) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", TYPES[kind])
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal has other things to say."""


def inside(folder: Path, name: str) -> Path | None:
    """A file of a folder by its name with ``/`` between; None for whatever leads elsewhere or is of no known kind."""
    if "\x00" in name or "\\" in name:
        return None
    try:
        file = (folder / name).resolve(strict=True)
    except (OSError, ValueError):
        return None
    fine = file.is_relative_to(folder.resolve()) and file.is_file() and file.suffix in TYPES
    return file if fine else None


def serve(
    places: Sequence[Path | str],
    wishes: Wishes,
    port: int,
    began: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Serve a report until an interrupt.

    Args:
        places, wishes: as for ``writing.write_report``.
        port: of this machine; 0 for any free one.
        began: told the address.
        say: told what could not be read.

    Raises:
        UserError: nothing to show yet, or the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="rbs-report-") as home:
        watched = Watched(places, Path(home), replace(wishes, live=True), lambda _: None)
        if not watched.look():
            raise UserError(watched.problem or "serve: nothing to show")
        watched.say = say
        try:
            server = ThreadingHTTPServer((HOST, port), partial(_Handler, watched))
        except OSError as e:
            raise UserError(f"--port {port}: {e.strerror or e}") from None
        looking = threading.Thread(target=watched.keep_looking, daemon=True)
        looking.start()
        began(f"http://{HOST}:{server.server_address[1]}/")
        try:
            server.serve_forever()
        finally:
            watched.stop()
            server.server_close()
            looking.join(timeout=30)
