"""How far a benchmark's numbers move when nothing changes but the machine, or the seed: what ``check`` allows for.

``python -m benchmarks.machine_spread configs/quickstart.yaml --out results/reference/quickstart/spread.csv``. One
processor poses as several: with the vector instructions that PyTorch, oneDNN and MKL may use cut down, and on another
number of threads, sums are rounded in another order, and a training goes another way from there. Every pose, and every
other seed, trains all rows anew and judges them without a certificate (so ``worst`` is that of the attacks). Rows go to
the CSV as they are finished, in the columns of a leaderboard behind ``kind`` (``machine`` or ``seed``) and ``change``;
the same command goes on after an interrupt. It ends with the standard deviations over the machines and over the seeds.

Better than a pose is another processor: there, ``--as-it-is`` adds its own row to a file that was begun elsewhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from robustbench_sparse.config.columns import COUNTS, DETECTABLE, RANKS, SECONDS, TRAIN
from robustbench_sparse.foundation.environment import processor
from robustbench_sparse.foundation.files import write_text

_UNUSED = ("benchmark", "model", "defenses", "precision", "asked", "verdict", "flags", "run_id", "worst_n")


@dataclass(frozen=True, kw_only=True)
class Pose:
    """One retraining of all rows.

    Attributes:
        kind: ``machine``, or ``seed`` where that is what differs.
        change: in words.
        environment: what libraries are told, before they are loaded.
        settings: changes of the config.
        seed: of all rows.
    """

    kind: str
    change: str
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    seed: int = 0


def _told(**environment: str) -> Pose:
    change = " ".join(f"{k}={v}" for k, v in environment.items())
    return Pose(kind="machine", change=change, environment=environment)


MACHINES = (
    Pose(kind="machine", change="as it is"),
    _told(ATEN_CPU_CAPABILITY="avx2"),
    _told(ATEN_CPU_CAPABILITY="default"),
    _told(ONEDNN_MAX_CPU_ISA="AVX2"),
    _told(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2"),
    _told(ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41", MKL_ENABLE_INSTRUCTIONS="SSE4_2"),
    Pose(kind="machine", change="threads: 2", settings=("threads=2",)),
)


def retrained(config: Path, pose: Pose) -> pd.DataFrame:
    """The leaderboard's rows of one pose, trained and judged in a process of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        changes = ["evaluation.certificate=off", *pose.settings]
        sets = [part for change in changes for part in ("--set", change)]
        words = ["run", str(config), "--out", scratch, "--seeds", str(pose.seed), "--jobs", "1", "--quiet"]
        environment = {**os.environ, **pose.environment}
        done = subprocess.run(
            [sys.executable, "-m", "robustbench_sparse", *words, "--variant", "pose", *sets],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        if done.returncode not in (0, 1):
            raise SystemExit(f"{pose.change}: the run ended with exit code {done.returncode}")
        (path,) = Path(scratch).glob("*/leaderboard.csv")
        table = pd.read_csv(path)
    said = {*SECONDS, *COUNTS, *RANKS, *DETECTABLE, *TRAIN, *_UNUSED}
    table = table.drop(columns=[c for c in table.columns if c in said or c.endswith(("_lo", "_hi"))])
    table.insert(0, "change", pose.change)
    table.insert(0, "kind", pose.kind)
    table["processor"] = processor()
    return table


def main() -> None:
    """Retrain what is missing, and print the deviations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="CSV")
    parser.add_argument("--seeds", default="1,2,3", help="besides 0, which every machine trains")
    parser.add_argument(
        "--as-it-is", action="store_true", help="this machine without a pose, and no other seeds"
    )
    asked = parser.parse_args()
    seeds = [Pose(kind="seed", change=f"seed {s}", seed=int(s)) for s in asked.seeds.split(",") if s]
    table = pd.read_csv(asked.out) if asked.out.exists() else pd.DataFrame({"kind": [], "change": []})
    poses = MACHINES[:1] if asked.as_it_is else (*MACHINES, *seeds)
    done = set(zip(table["change"], table["processor"], strict=True)) if len(table) else set()
    for pose in poses:
        if (pose.change, processor()) in done:
            continue
        table = pd.concat([table, retrained(asked.config, pose)], ignore_index=True)
        write_text(asked.out, table.to_csv(index=False))
        print(f"{pose.kind}: {pose.change}", flush=True)
    rates = table.select_dtypes("float").columns
    machines = table[table["kind"] == "machine"]
    seeded = pd.concat([machines.drop_duplicates("run"), table[table["kind"] == "seed"]])
    for kind, part in (("machine", machines), ("seed", seeded)):
        print(f"\nstandard deviations over the {kind}s, in points")
        print(part.groupby("run", sort=False)[rates].std().round(2).to_string())


if __name__ == "__main__":
    main()
