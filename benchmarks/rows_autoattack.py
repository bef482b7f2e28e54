"""AutoAttack beside torchattacks' and the authors' own on the same adversarially trained network.

Images per second, stage by stage, and who breaks what.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks import AutoAttack
from benchmarks import peers
from benchmarks.bench import Bench
from benchmarks.lines import Line, Target, absent, faster
from benchmarks.stages import ClockedAutoAttack, Stages, clocked_torchattacks, has_amx, lines, matrix_rate
from benchmarks.timing import Side, Spread, interleave
from benchmarks.training import THREAT
from robustbench_sparse.engine.fast import attack_and_confirm
from robustbench_sparse.sparsity.counting import count_macs

# torchattacks 3.5.1 gives APGD and FAB 10 steps in its ensemble, where the paper has 100; equal work is compared.
PEERS_STEPS, PAPERS_STEPS = 10, 100
LISTED = 12
SLACK = 0.2  # points of robust accuracy that ours may lie above theirs
FASTER, FASTER_WITHOUT_AMX = 3, 2  # times as fast as a peer


def autoattack(bench: Bench, budget: float) -> list[Line]:
    """One round of each: minutes of the peer's time leave no room for medians."""
    s = bench.sizes
    if not peers.installed("torchattacks"):
        return [absent("AutoAttack", "torchattacks")]
    model = bench.network("pgd_at")
    stages = {name: Stages(bench.device) for name in ("ours", "torchattacks")}
    plain_theirs = peers.torchattacks_autoattack(
        model, eps=THREAT.eps, classes=len(bench.dataset.classes), queries=s.auto_queries
    )
    theirs = clocked_torchattacks(plain_theirs, stages["torchattacks"])
    x, y = bench.part(s.auto_images)
    half = len(y) // 2
    first, second = slice(0, half), slice(half, len(y))

    def peer(part: slice) -> Tensor:
        torch.manual_seed(part.start)
        found = bench.batches(x[part], y[part], lambda x, y, _: theirs(x, y))
        return bench.verdict(model, found, y[part])

    clocked = ClockedAutoAttack(steps=PEERS_STEPS, queries=s.auto_queries, stages=stages["ours"])
    own, other = _both(bench, clocked, "torchattacks", peer, first, budget)
    what = f"AutoAttack with the peer's {PEERS_STEPS} steps"
    out = [_speed(bench, what, own[0], "torchattacks", other[0], half)]
    out += lines(what, stages["ours"], "torchattacks", stages["torchattacks"])
    out.append(_share(bench, stages["ours"]))

    plain = AutoAttack(steps=PEERS_STEPS, queries=s.auto_queries)
    equal = torch.cat([own[1], _ours(bench, plain, second)])
    full = AutoAttack(steps=PAPERS_STEPS, queries=s.auto_queries)
    right, beside = _original(bench, full, first, budget)
    papers = torch.cat([right, _ours(bench, full, second)])
    theirs_right = torch.cat([other[1], peer(second)])
    what = f"AutoAttack, eps 8/255, PGD-AT network, {len(y)} images"
    return [
        *out,
        *beside,
        _agreement(f"{what}, {PEERS_STEPS} steps", equal, theirs_right),
        _agreement(f"{what}, {PAPERS_STEPS} steps", papers, theirs_right),
    ]


def _ours(bench: Bench, attack: AutoAttack, part: slice) -> Tensor:
    """Whether the network itself withstands the attack, bool, for a part of the test images."""
    s, fast, verdicts = bench.sizes, bench.fast("pgd_at"), []
    x, y = bench.part(part.stop)
    for start in range(part.start, part.stop, s.verdict_batch):
        some = slice(start, min(start + s.verdict_batch, part.stop))
        streams = bench.streams(0, "autoattack", start, len(y[some]))
        verdicts.append(attack_and_confirm(attack, fast, x[some], y[some], THREAT, streams)[1])
    return torch.cat(verdicts)


Timed = tuple[Spread, Tensor]  # images per second, and which images withstood


def _both(
    bench: Bench,
    attack: AutoAttack,
    name: str,
    peer: Callable[[slice], Tensor],
    part: slice,
    budget: float,
) -> tuple[Timed, Timed]:
    """One round of ours and of a peer, after a warm-up that compiles what ours will want."""
    s, model, fast = bench.sizes, bench.network("pgd_at"), bench.fast("pgd_at")
    x, y = bench.part(s.batch)
    short = AutoAttack(steps=2, queries=attack.queries)
    few, warm = slice(0, 4), bench.streams(0, "warm", 0, 4)
    sides: list[Side[Tensor]] = [
        Side(
            "ours",
            lambda _: _ours(bench, attack, part),
            lambda: attack_and_confirm(short, fast, x[few], y[few], THREAT, warm),
        ),
        Side(name, lambda _: peer(part), lambda: bench.verdict(model, x, y)),
    ]
    measured = interleave(sides, repeats=1, budget=budget, device=bench.device)
    count = part.stop - part.start
    own, other = ((m.rate(count), m.results[0]) for m in (measured["ours"], measured[name]))
    return own, other


def _original(bench: Bench, attack: AutoAttack, part: slice, budget: float) -> tuple[Tensor, list[Line]]:
    """Our verdicts with the paper's steps, and, where the authors' own code is there, its time and its verdicts."""
    what = f"AutoAttack with the paper's {attack.steps} steps"
    if not peers.installed("autoattack"):
        note = "not on PyPI; measured where it is importable from a copy of its repository"
        return _ours(bench, attack, part), [Line(what, peer="autoattack", note=note)]
    model = bench.network("pgd_at")
    batch, queries = bench.sizes.batch, attack.queries
    ensemble = peers.original_autoattack(
        model, eps=THREAT.eps, batch=batch, queries=queries, device=bench.device
    )
    x, y = bench.part(part.stop)
    own, other = _both(
        bench,
        attack,
        "autoattack",
        lambda part: bench.verdict(model, ensemble(x[part], y[part]), y[part]),
        part,
        budget,
    )
    return own[1], [
        _speed(bench, what, own[0], "autoattack", other[0], part.stop - part.start),
        _agreement(f"{what}, {part.stop - part.start} images", own[1], other[1], "autoattack"),
    ]


def _speed(bench: Bench, what: str, own: Spread, peer: str, other: Spread, images: int) -> Line:
    return faster(
        what,
        "images/s",
        own,
        peer,
        other,
        at_least=FASTER if bench.device.type == "cuda" or has_amx() else FASTER_WITHOUT_AMX,
        note=f"the first {images} images, one round each; Square with {bench.sizes.auto_queries} queries",
    )


def _share(bench: Bench, stages: Stages) -> Line:
    """What Square, four fifths of the time, makes of the machine: its passes beside a plain matrix product."""
    s = bench.sizes
    most = matrix_rate(bench.device, torch.bfloat16)
    passes = stages.images["Square"] * s.auto_queries
    macs = count_macs(bench.network("pgd_at"), 3, bench.dataset.size)
    got = 2 * macs * passes / max(stages.seconds["Square"], 1e-9)
    return Line(
        "Square: multiply-accumulates of its passes",
        "GFLOP/s",
        Spread.of([got / 1e9]),
        "bf16 matrix product",
        Spread.of([most / 1e9]),
        got / most,
        note="two operations for each; at most, as images leave at their first success: every image is counted to "
        f"the end; {2 * macs / 1e6:.0f} MFLOP a pass",
    )


def _agreement(what: str, ours: Tensor, theirs: Tensor, peer: str = "torchattacks") -> Line:
    """Robust accuracies, and every image on which the verdicts differ."""
    own, other = (100 * right.float().mean().item() for right in (ours, theirs))
    only = {
        "only ours broke": (~ours & theirs).nonzero().flatten().tolist(),
        "only theirs broke": (ours & ~theirs).nonzero().flatten().tolist(),
    }
    lists = [
        " ".join(
            [name, str(len(at)), *(f"#{i}" for i in at[:LISTED]), *(["..."] if len(at) > LISTED else [])]
        )
        for name, at in only.items()
    ]
    return Line(
        what,
        unit=f"points more than {peer}'s",
        peer=peer,
        target=Target("<=", SLACK, "points"),
        got=round(own - other, 4),  # 0.2 is a difference of whole images, not of the last bits
        agreement=f"robust {own:.1f} % / {other:.1f} %",
        note="; ".join(lists),
    )
