"""Where a run was made: versions, hardware, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "safetensors")
# Where networks come from: named where one of them is at work.
SOURCES = ("timm", "transformers", "onnxruntime")


def commit() -> str:
    """The source's git commit, with ``-dirty`` when files differ from it; the version outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--", "attacks", "defenses", "robustbench_sparse")
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, or a disk that does not answer
        return f"v{metadata.version('robustbench_sparse')}"
    return head + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    # Without optional locks, so that rows side by side do not stand in each other's way, nor in that of who commits.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> dict[str, object]:
    """What belongs beside every number: commit, versions, machine."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {p: metadata.version(p) for p in (*PACKAGES, *(p for p in SOURCES if p in sys.modules))},
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
