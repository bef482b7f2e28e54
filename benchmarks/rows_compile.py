"""What compiling costs, which no other row has in its medians: in a fresh process, cold and from the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.lines import Line
from benchmarks.timing import Spread


def compiling(bench: Bench, budget: float) -> list[Line]:
    """Warming up our form of an untrained network of the same shape, twice with one cache folder."""
    s = bench.sizes
    settings = json.dumps(
        {"model": s.model, "batch": s.batch, "compile": s.compile, "device": bench.device.type}
    )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        places = {
            "TORCHINDUCTOR_CACHE_DIR": folder,
            "TRITON_CACHE_DIR": f"{folder}/triton",
            "RBS_CACHE": folder,
        }
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.probe", settings],
                check=True,
                capture_output=True,
                text=True,
                timeout=budget,
                env={**os.environ, **places},
                cwd=Path(__file__).resolve().parent.parent,
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
    lines = []
    for name, result in zip(("cold", "from the cache, new process"), found, strict=True):
        note = f"Outside all other medians. {result['note']}".strip()
        lines.append(Line(f"warm-up of a network, {name}", "s", Spread.of([result["seconds"]]), note=note))
    return lines
