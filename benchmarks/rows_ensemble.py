"""What an ensemble of five noisy networks costs beside one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import noise_from
from benchmarks.bench import Bench
from benchmarks.lines import Line, Target, dearer
from benchmarks.timing import Measured, Side, Spread, interleave
from benchmarks.training import plan
from defenses.robust.draws import BatchRandom
from robustbench_sparse.models.build import build_network, on_device

MEMBERS = 5
TIMES, SHARE = 5.5, 0.15  # what an ensemble may cost in networks, and how much of it may be noise
NOISE: dict[str, dict[str, object]] = {
    "counters": {"noise": 0.1, "draws": "counters"},
    "streams": {"noise": 0.1, "draws": "streams"},
    "silent": {"noise": 0.0},
}


def ensemble(bench: Bench, budget: float) -> list[Line]:
    """Forward and backward pass in training mode, all parameters' gradients, the same engine on all sides."""
    s, device = bench.sizes, bench.device
    data = bench.train_part(s.train_batch)
    x, y = data.gather("train", torch.arange(data.count("train")))
    x = x.contiguous(memory_format=torch.channels_last)
    lines = []
    for name, precision in (
        ("fp32", nullcontext),
        ("bf16", lambda: torch.autocast(device.type, torch.bfloat16)),
    ):
        sides = [_side("one", _network(bench, []), precision, x, y)]
        for side, noise in NOISE.items():
            many = [{"name": "enresnet", "members": MEMBERS, **noise}]
            sides.append(_side(side, _network(bench, many), precision, x, y))
        if name == "bf16":
            plain = _network(bench, []).to(memory_format=torch.contiguous_format)
            sides.append(_side("plain", plain, nullcontext, x.contiguous(), y))
        repeats = max(3, s.short_repeats // 2)
        measured = interleave(sides, repeats=repeats, budget=budget / 2, device=device)
        what = f"En{MEMBERS}, forward + backward, {name}"
        note = f"Batch of {len(y)}, eager, channels-last, noise 0.1." if name == "fp32" else ""
        lines += [
            _times(what + ", noise from counters", measured, "counters", "one", note, at_most=TIMES),
            _times(what + ", noise from streams", measured, "streams", "one"),
            _share(f"noise of En{MEMBERS}, {name}, from counters", measured),
        ]
        if name == "bf16":
            note = "Another engine: five noisy networks here beside one as the papers' code runs it."
            lines.append(_times(what + ", noise from counters", measured, "counters", "plain", note))
    return lines


PEERS = {"one": "one network, ours as well", "plain": "one network, plain fp32 loop"}


def _times(
    what: str,
    measured: Mapping[str, Measured[None]],
    ours: str,
    theirs: str,
    note: str = "",
    at_most: float | None = None,
) -> Line:
    a, b = measured[ours].per(1e-3), measured[theirs].per(1e-3)
    return dearer(what, "ms", a, PEERS[theirs], b, at_most=at_most, note=note)


def _share(what: str, measured: Mapping[str, Measured[None]]) -> Line:
    """The part of a pass that goes into noise: round by round, beside the same ensemble without."""
    pairs = zip(measured["counters"].seconds, measured["silent"].seconds, strict=True)
    shares = Spread.of([1 - without / noisy for noisy, without in pairs])
    return Line(what, "of the pass", ours=shares, target=Target("<=", SHARE, "of it"), got=shares.median)


def _network(bench: Bench, defenses: Sequence[Mapping[str, object]]) -> nn.Module:
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
