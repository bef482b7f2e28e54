"""Rows on Ray and in jobs of SLURM's kind: the table of one process, whatever happens to nodes and jobs meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustbench_sparse import run_benchmark
from robustbench_sparse.backends.base import Unit
from robustbench_sparse.backends.board import Board
from robustbench_sparse.backends.course import work_off
from robustbench_sparse.config.columns import SECONDS
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.progress import Silent
from tests.helpers.small import small

pytestmark = pytest.mark.slow


def tiny(**changes: Any) -> dict[str, Any]:
    """Three rows of some tenths of a second each, two of which are attacked by way of the first."""
    raw = small(
        threads=1,
        model={"name": "mlp", "hidden": [16]},
        runs={"robust": {"defenses": [{"name": "pgd_at", "steps": 3}]}, "natural": {}},
        attacks={"fgsm": "fgsm", "borrowed": {"name": "transfer", "source": "natural", "steps": 2}},
        evaluation={"limit": 20},
        seeds=[0, 1],
    )
    raw["train"] = {"epochs": 20, "batch_size": 20}
    return {**raw, **changes}


def text_of(table: pd.DataFrame) -> str:
    return table.drop(columns=list(SECONDS)).to_csv(index=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The table of one process."""
    return text_of(run_benchmark(tiny(), out=tmp_path_factory.mktemp("alone"), jobs=1))


# Ray ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes with a processor each, one of them with what passes for a GPU."""
    pytest.importorskip("ray")
    from tests.helpers.clusters import cluster

    with cluster({"num_cpus": 1}, {"num_cpus": 1, "num_gpus": 1}) as made:
        yield made


def test_units_go_where_their_gpus_are_and_nowhere_else(nodes: Any, tmp_path: Path) -> None:
    from robustbench_sparse.backends.on_ray import OnRay

    backend = OnRay(address=nodes.address, entry="tests.helpers.clusters:where")
    units = [Unit(run_id=f"g{i}", label="gpu", seed=i, cpus=0.25, gpus=0.5) for i in range(4)]
    units += [Unit(run_id=f"c{i}", label="cpu", seed=i, cpus=1) for i in range(2)]
    start = tmp_path / "start.json"
    engine = backend.opened(start, units)
    try:
        with pytest.raises(
            UserError, match=r"runs\.gpu, seed 9: takes 1 CPU, 2 GPU, which no node of the cluster has"
        ):
            engine.fit([Unit(run_id="g9", label="gpu", seed=9, gpus=2)])
        assert engine.most == 4, "two units for each of the two places"
        done = sum(1 for _ in work_off(units, engine, Silent(), Board(tmp_path, Silent()), lambda _: False))
        with_gpu = [n["NodeID"] for n in engine._ray.nodes() if n["Alive"] and n["Resources"].get("GPU")]
    finally:
        engine.close()
    assert done == 6
    seen = {path.name: path.read_text().split() for path in tmp_path.glob("*.where")}
    assert {seen[f"gpu-{i}.where"][0] for i in range(4)} == set(with_gpu)
    assert {seen[f"gpu-{i}.where"][1] for i in range(4)} == {"0"}
    assert {seen[f"cpu-{i}.where"][1] for i in range(2)} == {"none"}


def test_code_that_a_node_has_not_is_a_line_and_ends_the_rest(nodes: Any, tmp_path: Path) -> None:
    from robustbench_sparse.backends.on_ray import OnRay

    units = [Unit(run_id=f"u{i}", label="u", seed=i) for i in range(3)]
    engine = OnRay(address=nodes.address, entry="no_such_module:unit").opened(tmp_path / "start.json", units)
    try:
        with pytest.raises(
            UserError, match="a unit cannot be run on its node: No module named 'no_such_module'"
        ):
            list(work_off(units, engine, Silent(), Board(tmp_path, Silent()), lambda _: False))
    finally:
        engine.close()
    assert not engine._ray.is_initialized()


def test_a_node_that_is_killed_changes_no_number(nodes: Any, alone: str, tmp_path: Path) -> None:
    from robustbench_sparse.backends.on_ray import OnRay
    from tests.helpers.clusters import Kills

    def training(killed: int) -> bool:
        return bool(list(tmp_path.glob("small/runs/*/checkpoint.pt")))

    with Kills(nodes, training) as kills:
        table = run_benchmark(tiny(), out=tmp_path, backend=OnRay(address=nodes.address))
    assert kills.killed == 1
    assert text_of(table) == alone
    assert not (tmp_path / "small" / ".units").exists()


# SLURM --------------------------------------------------------------------------------------------------


def _jobs() -> list[int]:
    """Processes of submitit's that work on a unit of ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"submitit.core._submit" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_a_job_that_is_preempted_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from robustbench_sparse.backends.on_slurm import OnSlurm

    preempted: list[int] = []
    ended = threading.Event()

    def preempt() -> None:
        while not ended.is_set() and not preempted:
            if list(tmp_path.glob("small/runs/*/checkpoint.pt")):
                preempted.extend(_jobs())
                for process in preempted:
                    os.kill(process, signal.SIGUSR2)
            time.sleep(0.02)

    thread = threading.Thread(target=preempt, daemon=True)
    thread.start()
    try:
        table = run_benchmark(tiny(seeds=[0]), out=tmp_path, backend=OnSlurm(cluster="local", jobs=2))
    finally:
        ended.set()
        thread.join()
    assert preempted
    assert text_of(table) == text_of(run_benchmark(tiny(seeds=[0]), out=tmp_path / "alone", jobs=1))
    said = [path.read_text() for path in tmp_path.glob("small/.slurm/*_log.err")]
    assert any("Requeued job" in text or "preempted" in text for text in said), said
