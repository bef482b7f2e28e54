"""What an ensemble of five noisy networks costs beside one network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import noise_from
from benchmarks.bench import Bench
from benchmarks.lines import Line, dearer
from benchmarks.timing import Side, interleave
from benchmarks.training import plan
from defenses.robust.draws import BatchRandom
from robustbench_sparse.models.build import build_network, on_device

MEMBERS = 5


def ensemble(bench: Bench, budget: float) -> list[Line]:
    """Forward and backward pass in training mode, all parameters' gradients, the same engine on both sides."""
    s, device = bench.sizes, bench.device
    data = bench.train_part(s.train_batch)
    x, y = data.gather("train", torch.arange(data.count("train")))
    x = x.contiguous(memory_format=torch.channels_last)
    limit = 2.0 if device.type == "cuda" else 4.2
    lines = []
    for name, precision in (
        ("fp32", nullcontext),
        ("bf16", lambda: torch.autocast(device.type, torch.bfloat16)),
    ):
        many = [{"name": "enresnet", "members": MEMBERS, "noise": 0.1}]
        sides = [
            _side(side, _network(bench, defenses), precision, x, y)
            for side, defenses in (("ours", many), ("one", []))
        ]
        if name == "bf16":
            plain = _network(bench, []).to(memory_format=torch.contiguous_format)
            sides.append(_side("plain", plain, nullcontext, x.contiguous(), y))
        repeats = max(3, s.short_repeats // 2)
        measured = interleave(sides, repeats=repeats, budget=budget / 2, device=device)
        ours, one = (measured[side].per(1e-3) for side in ("ours", "one"))
        lines.append(
            dearer(
                f"En{MEMBERS}, forward + backward, {name}",
                "ms",
                ours,
                "one network, ours as well",
                one,
                at_most=limit,
                note=f"Batch of {len(y)}, eager, channels-last, noise 0.1." if name == "fp32" else "",
            )
        )
        if name == "bf16":
            lines.append(
                dearer(
                    f"En{MEMBERS}, forward + backward, {name}",
                    "ms",
                    ours,
                    "one network, plain fp32 loop",
                    measured["plain"].per(1e-3),
                    at_most=None,
                    note="Another engine: five noisy networks here beside one as the papers' code runs it.",
                )
            )
    return lines


def _network(bench: Bench, defenses: list[dict[str, object]]) -> nn.Module:
    run = plan(bench.sizes.model, {"epochs": 1}, defenses)
    built = [d.build() for d in run.defenses]
    data = bench.dataset
    model = build_network(run.model, built, data.channels, data.size, len(data.classes), seed=0)
    return on_device(model, bench.device).train()


def _side(
    name: str,
    model: nn.Module,
    precision: Callable[[], AbstractContextManager[object]],
    x: Tensor,
    y: Tensor,
) -> Side[None]:
    noise = torch.Generator().manual_seed(0)

    def work(_: int) -> None:
        model.zero_grad()
        with precision(), noise_from(model, BatchRandom(noise, len(y))):
            loss = F.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]

    return Side(name, work, lambda: work(0))
