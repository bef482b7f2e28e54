"""Commands that are stopped for longer than their leases last, overtaken and woken up; all moments: ``make fuzz``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from tests.pipeline import killed, stopped
from robustbench_sparse import benchmark
killed.CONFIG["evaluation"]["certificate"] = "off"
whole = stopped.unbroken()
chain = [
    ("before", "*/checkpoint.pt", 2),
    ("before", "*/model.safetensors", 1),
    ("before", "*/files.json", 2),
    ("before", "*/outcomes/pgd.json", 1),
]
print(stopped.problems(chain, whole))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGSTOP")
def test_what_a_stopped_command_does_when_it_is_woken_up_changes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
