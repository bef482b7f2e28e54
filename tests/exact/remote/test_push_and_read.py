"""Pushed results: whole or not there, sent once, and read only with the bytes that were pushed."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json, write_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.remote import contents
from robustbench_sparse.remote.place import Place
from robustbench_sparse.remote.push import push
from robustbench_sparse.remote.reading import local
from robustbench_sparse.reporting.leaderboard import tabulate
from robustbench_sparse.runs import names
from tests.helpers.commands import call, one_line
from tests.helpers.small import small


def trained(out: Path, **changes: Any) -> Path:
    """A benchmark of two rows, one of them finished."""
    raw = small(model={"name": "mlp", "hidden": [4]}, attacks={"fgsm": "fgsm"}, runs={"a": {}, "b": {}})
    raw["train"] = {"epochs": 1, "batch_size": 64}
    raw["train_limit"] = 128
    run_benchmark({**raw, **changes}, out=out, device="cpu", only=["a"])
    return out / "small"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("results"))


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "results" / "small"))


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/there"
        return
    yield "memory://there"
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RBS_CACHE", str(tmp_path / "cache"))


def sent(results: Path, url: str, **how: Any) -> int:
    (done,) = push(results, url, Silent(), **how)
    return done.files


def run_in(folder: Path) -> Path:
    (run,) = (folder / names.RUNS).iterdir()
    return run


def pushed_file(url: str, name: str) -> tuple[Place, str]:
    """Where a file of the benchmark lies."""
    place = Place.at(url).inner("small")
    found = contents.read_contents(place)
    assert found is not None
    (full,) = [n for n in found.files if n.endswith(name)]
    return place, f"{contents.OBJECTS}/{found.files[full].object}"


def stops_after(monkeypatch: pytest.MonkeyPatch, count: int, torn: bool = False) -> None:
    """Let writing end after so many files; the last one may be left torn, as where a store does not put whole files."""
    write, left = Place.write, iter(range(count))
    guard = threading.Lock()

    def writes(self: Place, name: str, content: bytes) -> None:
        with guard:
            more = next(left, None)
        if more is None:
            if torn:
                write(self, name, content[: len(content) // 2])
            raise UserError("torn")
        write(self, name, content)

    monkeypatch.setattr(Place, "write", writes)


def test_what_is_read_is_what_was_pushed(results: Path, url: str) -> None:
    (done,) = push(results, url, Silent())
    assert (done.runs, done.left) == (1, 1)
    assert done.bytes > 0
    folder = local(f"{url}/small")
    mine = {p.relative_to(results).as_posix(): p.read_bytes() for p in results.rglob("*") if p.is_file()}
    there = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert there == {name: data for name, data in mine.items() if ".lock" not in name}
    assert tabulate(folder).drop(columns="benchmark").equals(tabulate(results).drop(columns="benchmark"))
    assert local(f"{url}/small") == folder
    assert local(url) / "small" != results
    assert tabulate(local(url) / "small").equals(tabulate(results))


def test_of_one_run_only_its_files_are_fetched(results: Path, url: str) -> None:
    sent(results, url)
    run = run_in(results)
    folder = local(f"{url}/small/{names.RUNS}/{run.name}")
    assert folder.name == run.name
    assert (folder / names.verdicts("fgsm")).read_bytes() == (run / names.verdicts("fgsm")).read_bytes()
    assert (folder.parent.parent / names.BENCHMARK).is_file()
    with pytest.raises(UserError, match="no such run was pushed"):
        local(f"{url}/small/{names.RUNS}/other")


def test_a_run_at_work_is_left_out(results: Path, url: str) -> None:
    run = run_in(results)
    record = read_json(run / names.RECORD)
    del record[names.account("fgsm")]
    write_json(run / names.RECORD, record)
    with pytest.raises(UserError, match="no finished run yet"):
        sent(results, url)
    with pytest.raises(UserError, match="nothing was pushed here"):
        local(url)


def test_what_is_there_is_not_sent_again(results: Path, url: str) -> None:
    assert sent(results, url) > 5
    assert sent(results, url) == 0
    (results / names.LEADERBOARD_TEXT).write_text("another table\n")
    assert sent(results, url) == 1
    assert (local(f"{url}/small") / names.LEADERBOARD_TEXT).read_text() == "another table\n"


@pytest.mark.parametrize("torn", [False, True])
def test_a_torn_push_is_not_read_and_goes_on(
    results: Path, url: str, torn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stops_after(patch, 4, torn)
        with pytest.raises(UserError, match="torn"):
            sent(results, url)
    with pytest.raises(UserError, match="nothing was pushed here"):
        local(f"{url}/small")
    (done,) = push(results, url, Silent())
    assert done.there == 4
    assert tabulate(local(f"{url}/small")).equals(tabulate(results))


def test_a_torn_second_push_leaves_the_first(
    results: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(results, url)
    before = (results / names.LEADERBOARD_TEXT).read_text()
    (results / names.LEADERBOARD_TEXT).write_text("another table\n")
    with monkeypatch.context() as patch:
        stops_after(patch, 1)  # all but the manifest
        with pytest.raises(UserError, match="torn"):
            sent(results, url)
    assert (local(f"{url}/small") / names.LEADERBOARD_TEXT).read_text() == before


@pytest.mark.parametrize("name", ["model.safetensors", "outcomes/fgsm.csv", "benchmark.json"])
def test_a_changed_byte_is_refused_by_name_and_sent_again(results: Path, url: str, name: str) -> None:
    sent(results, url)
    place, where = pushed_file(url, name)
    content = bytearray(place.read(where))
    content[len(content) // 2] ^= 1
    place.write(where, bytes(content))
    with pytest.raises(UserError, match=rf"{name}: changed since it was pushed"):
        local(f"{url}/small")
    assert sent(results, url) == 0  # its length is the same
    assert sent(results, url, verify=True) == 1
    assert tabulate(local(f"{url}/small")).equals(tabulate(results))


def test_a_missing_file_is_named(results: Path, url: str) -> None:
    sent(results, url)
    place, where = pushed_file(url, "model.safetensors")
    place.files.rm(f"{place.root}/{where}")
    with pytest.raises(UserError, match=r"model\.safetensors: missing, though the manifest names it"):
        local(f"{url}/small")


def test_what_was_fetched_and_then_changed_is_fetched_again(results: Path, url: str) -> None:
    sent(results, url)
    folder = local(f"{url}/small")
    path = folder / names.BENCHMARK
    path.chmod(0o644)
    path.write_text(path.read_text().replace("small", "smell"))
    again = local(f"{url}/small")
    assert (again / names.BENCHMARK).read_bytes() == (results / names.BENCHMARK).read_bytes()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: {**m, "benchmark": "other"}, "changed since it was pushed"),
        (lambda m: {**m, "format": 2}, "damaged: format"),
        (lambda m: {**m, "files": {"../../x": next(iter(m["files"].values()))}}, "damaged: files"),
        (lambda m: {**m, "files": {"/etc/x": next(iter(m["files"].values()))}}, "damaged: files"),
        (lambda m: {**m, "files": {"a": {"sha256": "../x", "bytes": 1}}}, "damaged: files"),
        (lambda m: [], "damaged"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(
    results: Path, tmp_path: Path, change: Callable[[Any], Any], why: str
) -> None:
    sent(results, f"file://{tmp_path}/there")
    path = tmp_path / "there" / "small" / contents.MANIFEST
    write_json(path, change(read_json(path)))
    with pytest.raises(UserError, match=rf"manifest\.json: {why}"):
        local(f"file://{tmp_path}/there/small")


def test_two_pushes_at_once_end_with_a_whole_one(results: Path, url: str) -> None:
    other = Path(shutil.copytree(results, results.parent.parent / "other" / "small"))
    (other / names.LEADERBOARD_TEXT).write_text("of the other\n")
    failed: list[BaseException] = []

    def send(folder: Path) -> None:
        try:
            push(folder, url, Silent())
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=send, args=(f,)) for f in (results, other) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    text = (local(f"{url}/small") / names.LEADERBOARD_TEXT).read_text()
    assert text in ("of the other\n", (results / names.LEADERBOARD_TEXT).read_text())


def test_another_table_of_the_name_is_refused(results: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    sent(results, url)
    other = trained(tmp_path / "other", threat={"norm": "linf", "eps": 0.2})
    with pytest.raises(UserError, match="holds another table of this name"):
        sent(other, url)
    assert sent(other, url, replace=True) > 0
    assert tabulate(local(f"{url}/small")).equals(tabulate(other))


def test_a_changed_run_is_not_pushed(results: Path, url: str) -> None:
    path = run_in(results) / names.WEIGHTS
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match="changed since it was stored"):
        sent(results, url)


def test_a_live_folder_is_no_place(results: Path) -> None:
    with pytest.raises(UserError, match="lies within"):
        sent(results, f"file://{results}/there")
    with pytest.raises(UserError, match="nothing was pushed here"):
        local(f"file://{results}")


# The commands --------------------------------------------------------------------------------------------


def test_the_commands_push_and_read(results: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    done = call("push", results, url, "--quiet")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{url}/small: 1 runs; sent: ")
    assert "left out: 1 that are not finished" in done.stdout
    run = f"{names.RUNS}/{run_in(results).name}"
    for command in (
        ["leaderboard", "{}", "--format", "csv"],
        ["history", "{}", "--format", "csv"],
        ["explain", "{}/" + run],
        ["compare", "{}/" + run, "{}/" + run, "--format", "csv"],
    ):
        here, there = (call(*(part.format(at) for part in command)) for at in (results, f"{url}/small"))
        assert here.exit_code == there.exit_code == (2 if command[0] == "explain" else 0), there.output
        assert here.stdout == there.stdout
    table = results / names.LEADERBOARD
    checked = call("check", f"{url}/small", "--against", table)
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (
            "s4://bucket/x",
            "expected a place such as s3://, gs://, file://, got s4:// (did you mean 's3://' or 'gs://'?)",
        ),
        ("http://host/x", "expected a place such as s3://, gs://, file://, got http://"),
        ("file://x::s3://y", "expected a place such as"),
    ],
)
def test_unknown_places_are_one_line(results: Path, url: str, why: str) -> None:
    assert why in one_line(call("push", results, url))
    assert why in one_line(call("leaderboard", url))


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_one_line(
    results: Path, scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    expected = f"{package} is not installed: pip install 'robustbench_sparse[{scheme}]'"
    assert one_line(call("push", results, f"{scheme}://bucket/x")) == expected


def test_no_right_to_write_is_one_line(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "pipe_file", refuses)
    said = one_line(call("push", results, "memory://there"))
    assert said.endswith("no right to do this: Access Denied")


def test_a_folder_without_a_benchmark_is_one_line(tmp_path: Path) -> None:
    assert "no benchmark here" in one_line(call("push", tmp_path, f"file://{tmp_path}/there"))
