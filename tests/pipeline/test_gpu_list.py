"""The list of a GPU's work: in pieces, each going on where the last one stood, whatever becomes of one item."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import gpu
from robustbench_sparse.foundation.files import read_json
from tests.helpers.small import small

# Counts to three, a number a start, as a benchmark goes on from its last epoch; it ends by itself once it is there.
COUNTS = """
import pathlib, sys, time
path = pathlib.Path(sys.argv[1]) / "n"
path.parent.mkdir(parents=True, exist_ok=True)
n = int(path.read_text()) + 1 if path.exists() else 1
path.write_text(str(n))
time.sleep(0 if n == 3 else 600)
"""


def listing(monkeypatch: pytest.MonkeyPatch, *items: tuple[str, str]) -> None:
    """A list of scripts by name."""

    def listed(options: argparse.Namespace) -> Iterator[gpu.Item]:
        for name, script in items:
            out = options.out / name
            yield gpu.Item(name, [sys.executable, "-c", script, str(out)], out)

    monkeypatch.setattr(gpu, "listed", listed)
    monkeypatch.setattr(gpu, "GRACE_S", 0.5)


def state(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(out / gpu.STATE)
    return found


def test_an_item_goes_on_piece_by_piece(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listing(monkeypatch, ("first", COUNTS), ("second", "pass"))
    words = ["--out", str(tmp_path), "--piece", "2", "--device", "cpu"]
    assert gpu.main([*words, "--once"]) == 3
    assert state(tmp_path)["first"]["status"] == "begun"
    assert "second" not in state(tmp_path)
    assert gpu.main(words) == 0
    assert {name: (s["status"], s["pieces"]) for name, s in state(tmp_path).items()} == {
        "first": ("done", 3),
        "second": ("done", 1),
    }
    assert gpu.main(words) == 0
    assert state(tmp_path)["first"]["pieces"] == 3, "what is done is not done again"


def test_an_item_that_fails_or_stands_still_lets_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = "import sys; print('as it went'); sys.exit('not today')"
    gaps, still = "import sys; sys.exit(1)", "import time; time.sleep(600)"
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    listing(
        monkeypatch, ("broken", broken.replace("sys.exit(", "print(").replace("today')", "today'); sys.exit(2)")),
        ("gaps", gaps), ("still", still), ("deaf", deaf), ("last", "pass"),
    )  # fmt: skip
    assert gpu.main(["--out", str(tmp_path), "--piece", "1.5", "--device", "cpu"]) == 1
    found = state(tmp_path)
    statuses = {name: known["status"] for name, known in found.items()}
    assert statuses == {"broken": "failed", "gaps": "gaps", "still": "stuck", "deaf": "stuck", "last": "done"}
    assert found["broken"]["said"] == "not today"
    assert found["still"]["pieces"] == gpu.IDLE
    assert "as it went" in (tmp_path / gpu.LOGS / "broken.log").read_text()


def test_the_list_names_its_items_and_refuses_others() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--list"], capture_output=True, text=True, check=True
    )
    names = done.stdout.split()
    assert names[0] == "tests"
    assert names[-3:] == list(gpu.CONFIGS)
    assert all((Path("configs") / f"{name}.yaml").is_file() for name in gpu.CONFIGS)
    with pytest.raises(SystemExit):
        gpu.main(["--only", "no such item"])


@pytest.mark.slow
@pytest.mark.long
def test_the_real_commands_run_with_tiny_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    configs.mkdir()
    for name in gpu.CONFIGS:
        raw = small(model={"name": "mlp", "hidden": [8]}, runs={"natural": {}}, attacks={"fgsm": "fgsm"})
        raw["name"] = name
        (configs / f"{name}.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    out, only = tmp_path / "out", ",".join(["tests", "bench:cli", *gpu.CONFIGS])
    words = ["--device", "cpu", "--out", str(out), "--quick", "--original", "--configs", str(configs)]
    assert (
        gpu.main([*words, "--jobs", "1", "--only", only, "--tests", "tests/exact/foundation/test_paired.py"])
        == 0
    )
    assert {s["status"] for s in state(out).values()} == {"done"}
    assert len(state(out)) == 5
    assert (out / "bench" / "cli.csv").is_file()
    assert {path.parent.name for path in out.glob("*/leaderboard.csv")} == {f"{n}@gpu" for n in gpu.CONFIGS}
