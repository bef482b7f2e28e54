"""What a network costs: parameters, multiplications, bytes, and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_sparse.foundation.environment import processor

BATCHES = (1, 128)
REPEATS = 15


def latency(
    networks: Sequence[nn.Module], x: Tensor, device: torch.device, repeats: int = REPEATS
) -> list[float]:
    """Seconds of one forward pass in eval mode: the median of several, the networks taking turns.

    Taking turns spreads whatever else the machine does over all of them.
    """
    x = x.to(device)
    networks = [network.to(device).eval() for network in networks]
    seconds: list[list[float]] = [[] for _ in networks]
    with torch.no_grad():
        for turn in range(repeats + 3):
            for network, taken in zip(networks, seconds, strict=True):
                _wait(device)
                began = time.perf_counter()
                network(x)
                _wait(device)
                if turn >= 3:  # the first passes choose algorithms and fill caches
                    taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in seconds]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def latencies(before: nn.Module, after: nn.Module, x: Tensor) -> list[dict[str, Any]]:
    """Milliseconds per batch before and after, on the CPU and on a GPU where there is one.

    The networks come back to where they were. A batch of more images than there are repeats them.
    """
    homes = [next(m.parameters()).device for m in (before, after)]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    rows: list[dict[str, Any]] = []
    try:
        for device in devices:
            for size in BATCHES:
                images = x.repeat(-(-size // len(x)), 1, 1, 1)[:size]
                first, second = latency((before, after), images, device)
                rows.append(
                    {
                        "device": device.type,
                        "hardware": torch.cuda.get_device_name(device)
                        if device.type == "cuda"
                        else processor(),
                        "threads": torch.get_num_threads() if device.type == "cpu" else None,
                        "batch": size,
                        "before_ms": 1000 * first,
                        "after_ms": 1000 * second,
                    }
                )
    finally:
        for network, home in zip((before, after), homes, strict=True):
            network.to(home)
    return rows
