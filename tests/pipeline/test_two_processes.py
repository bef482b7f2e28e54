"""Two processes that train one network come to the numbers of one, and end together, however one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import load_weights
from robustbench_sparse.foundation.processes import environment
from robustbench_sparse.foundation.progress import Silent, Task
from robustbench_sparse.runs import names
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.training import helpers
from robustbench_sparse.training.parallel import joined
from tests.helpers.second_process import CASES, trained
from tests.helpers.small import small

pytestmark = pytest.mark.slow
Left = tuple[Trained, dict[str, Tensor], dict[str, Tensor]]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Left]]:
    """Every case as two processes train it; this one is the first."""
    meeting = tmp_path_factory.mktemp("meeting") / "file"
    command = [sys.executable, "-m", "tests.helpers.second_process", str(meeting)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    second = subprocess.Popen(command, env=environment())
    try:
        with joined(meeting, 0, 2, torch.device("cpu")) as ranks:
            left = {name: trained(case, ranks) for name, case in CASES.items()}
        yield left
    finally:
        second.kill()
        second.wait()
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_come_to_the_numbers_of_one(name: str, together: dict[str, Left]) -> None:
    (left, state, streams), (alone, expected, drawn) = together[name], trained(CASES[name])
    moved = max(float((w - expected[k]).abs().max()) for k, w in state.items() if w.is_floating_point())
    assert moved <= CLOSE
    assert {k: v.tolist() for k, v in streams.items()} == {k: v.tolist() for k, v in drawn.items()}
    for mine, other in zip(left.history, alone.history, strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-4, nan_ok=True)
    assert left.selected["epoch"] == alone.selected["epoch"]
    deployed = max(float((w - alone.weights[k]).abs().max()) for k, w in left.weights.items())
    assert deployed <= CLOSE


def config(devices: int = 2) -> dict[str, Any]:
    train = {"epochs": 4, "batch_size": 64, "devices": devices}
    runs = {"r": {"defenses": [{"name": "pgd_at", "steps": 2}]}}
    return small(model={"name": "mlp", "hidden": [16]}, train=train, runs=runs, train_limit=256)


def run_of(out: Path, devices: int = 2, show: Silent | None = None) -> Path:
    run_benchmark(config(devices), out=out, device="cpu", show=show)
    (run,) = (out / "small" / names.RUNS).iterdir()
    return run


class Kills(Silent):
    """Kills something once so many images have been trained on."""

    def __init__(self, images: int, kill: Any) -> None:
        self._left, self._kill = images, kill

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Task:
        return self

    def advance(self, amount: int, info: str = "") -> None:
        self._left -= amount
        if self._left <= 0:
            self._kill()

    def close(self) -> None:
        """Nothing."""


def test_a_helper_that_dies_ends_the_training_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = run_of(tmp_path / "unbroken")
    one = run_of(tmp_path / "one", devices=1)
    assert one.name != unbroken.name
    pairs = zip(*(load_weights(run / names.WEIGHTS).values() for run in (one, unbroken)), strict=True)
    assert all(torch.allclose(a, b, atol=CLOSE) for a, b in pairs)
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(helpers.subprocess, "Popen", Noted)
    dies = Kills(600, lambda: os.kill(started[-1].pid, signal.SIGKILL))  # in the third epoch of 256 images
    with pytest.raises(UserError, match=r"process 2 of the 2 that train this network ended: code -9"):
        run_of(tmp_path / "killed", show=dies)
    assert all(p.poll() is not None for p in started)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # in the epoch that was lost before
        run_of(tmp_path / "killed", show=Kills(200, interrupt))
    assert all(p.poll() is not None for p in started)
    resumed = run_of(tmp_path / "killed")
    for name in (names.WEIGHTS, names.HISTORY, names.verdicts("pgd")):
        assert (resumed / name).read_bytes() == (unbroken / name).read_bytes(), name
