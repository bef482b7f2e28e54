"""Warm up one untrained network in a process of its own; settings as JSON come as the argument."""

from __future__ import annotations

import json
import sys
import time

import torch

from benchmarks.training import plan
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.models.build import build_network


def main(settings: str) -> None:
    """Print seconds and note as JSON."""
    given = json.loads(settings)
    device = torch.device(given["device"])
    run = plan(given["model"], {"epochs": 1}, [])
    model = build_network(run.model, [], 3, 32, 10, seed=0).to(device).eval()
    x = torch.rand(given["batch"], 3, 32, 32, device=device)
    fast = FastNetwork(model, precision="bf16", compile=given["compile"])
    began = time.perf_counter()
    fast.warm_up(x)
    print(json.dumps({"seconds": time.perf_counter() - began, "note": fast.note or ""}))


if __name__ == "__main__":
    main(sys.argv[1])
