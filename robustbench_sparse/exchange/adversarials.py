"""The images behind a row's worst case, made again: outcomes keep verdicts and norms, and few of the images."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor

from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.exchange.row import BATCH, Row
from robustbench_sparse.runs import names

STREAM = "judge/export"  # of the noise of a random network


def stored_adversarials(row: Row) -> dict[int, list[Tensor]]:
    """Position in the data set -> adversarials (C, S, S) of it that checks and other people found, and are kept."""
    out: dict[int, list[Tensor]] = {}
    files = [names.challenge(c.name)[2] for c in row.found.challenges]
    if row.found.certificate.found and row.place.seals.has(names.ADVERSARIALS):
        files.append(names.ADVERSARIALS)
    for file in files:
        row.place.seals.check(file)
        found = load_file(row.place.path / file)
        for i, image in zip(found["index"].tolist(), found["candidate"], strict=True):
            out.setdefault(int(i), []).append(image)
    return out


def worst_images(row: Row) -> tuple[Tensor, Tensor]:
    """An adversarial of each judged image, and the share of draws still right on it.

    Stored ones come first; then the row's attacks, with their random streams, on the network itself in float32, each
    on the images that still stand. Those that withstand everything stay as they are.

    Returns:
        Images (n, C, S, S) in [0, 1] within the benchmark's ball, and shares (n,); on the CPU.
    """
    x, y = row.clean()
    index = row.data.test_indices
    best, right = x.clone(), row.right(x, y, index, STREAM)
    kept = stored_adversarials(row)
    deep = max((len(images) for images in kept.values()), default=0)
    for turn in range(deep):
        at = torch.tensor([p for p, i in enumerate(index.tolist()) if len(kept.get(i, ())) > turn])
        tried = torch.stack([kept[int(index[p])][turn] for p in at.tolist()]).to(x)
        _take(row, best, right, at, tried, x, y, index)
    for plan in row.plan.attacks:
        _attacked(row, plan, best, right, x, y, index)
    return best.cpu(), right


def _attacked(
    row: Row, plan: AttackPlan, best: Tensor, right: Tensor, x: Tensor, y: Tensor, index: Tensor
) -> None:
    """One attack on the images that stand, batch by batch."""
    todo = (right > 0.5).nonzero().flatten()
    task = row.judge.show.start(f"{row.place.label} {plan.label}", len(todo), "images", 0)
    try:
        for at in torch.split(todo, BATCH):
            tried = row.judge.candidates(plan, index[at], x[at], y[at])
            _take(row, best, right, at, tried, x, y, index)
            task.advance(len(at))
    finally:
        task.close()


def _take(
    row: Row, best: Tensor, right: Tensor, at: Tensor, tried: Tensor, x: Tensor, y: Tensor, index: Tensor
) -> None:
    """Keep what fools better than what is there, and lies in the benchmark's ball."""
    threat = row.plan.threat
    legal = (threat.size(tried - x[at]) <= threat.reach).cpu()
    now = row.right(tried, y[at], index[at], STREAM)
    better = at[legal & (now < right[at])]
    taken = (legal & (now < right[at])).nonzero().flatten()
    best[better] = tried[taken]
    right[better] = now[taken]
