from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from robustbench_sparse.pages.serving import HOST, Watched, _Handler, inside
from robustbench_sparse.pages.writing import Wishes
from tests.helpers.written_rows import Written, written

pytest.importorskip("jinja2")


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    written(tmp_path / "b", {"first": Written(stands=[1.0, 0.0])}, certificate="off")
    return Watched([tmp_path / "b"], tmp_path / "out", Wishes(live=True, charts=False), lambda _: None)


@pytest.fixture
def port(watched: Watched) -> Iterator[int]:
    watched.look()
    server = ThreadingHTTPServer((HOST, 0), partial(_Handler, watched))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def asked(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_a_new_row_renews_the_pages(watched: Watched, tmp_path: Path) -> None:
    assert watched.look()
    assert not watched.look()
    written(
        tmp_path / "b", {"first": Written(stands=[1.0]), "second": Written(stands=[0.0])}, certificate="off"
    )
    assert watched.look()
    assert watched.version == 2
    assert "second" in (watched.out / "index.html").read_text()


def test_what_is_half_written_leaves_the_pages_as_they_are(watched: Watched, tmp_path: Path) -> None:
    said: list[str] = []
    watched.say = said.append
    watched.look()
    (tmp_path / "b" / "benchmark.json").write_text("{")
    assert not watched.look()
    assert not watched.look()
    assert len(said) == 1
    assert "first" in (watched.out / "index.html").read_text()


def test_files_of_the_report_are_served_and_nothing_else(port: int, tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("s")
    assert asked(port, "/")[0] == 200
    assert asked(port, "/index.html?x=1", "HEAD") == (200, b"")
    assert json.loads(asked(port, "/version.json")[1]) == {"version": 1}
    for path in (
        "/../secret.md",
        "/%2e%2e/secret.md",
        "/..%2fsecret.md",
        "//etc/passwd",
        "/runs",
        "/runs/",
        "/%00",
        "/x.html",
    ):
        assert asked(port, path)[0] == 404, path


def test_only_this_machine_by_its_own_names_and_only_to_read(port: int) -> None:
    assert asked(port, "/", host="evil.example:80")[0] == 403
    assert asked(port, "/", host=f"localhost:{port}")[0] == 200
    assert asked(port, "/index.html", "POST")[0] == 501
    assert asked(port, "/index.html", "DELETE")[0] == 501


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "out" / "link.json").symlink_to(tmp_path / "secret.json")
    (tmp_path / "out" / "fine.json").write_text("{}")
    (tmp_path / "out" / "odd.pem").write_text("")
    assert inside(tmp_path / "out", "link.json") is None
    assert inside(tmp_path / "out", "odd.pem") is None
    assert inside(tmp_path / "out", "fine.json") is not None
