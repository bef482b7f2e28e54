"""Checks U3 to U5: does the network answer an evaluation as it answers those who use it?

The images looked at are clean ones, adversarials that were found in use, and points between two images: on clean images
alone a network that tells an evaluation from use answers both alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from attacks.losses import margin
from robustbench_sparse.certificate.checks.substitute import TOLD_APART, substitute_of
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.probes.aging import aged
from robustbench_sparse.certificate.probes.program import Query, used
from robustbench_sparse.certificate.probes.user import User, Way, as_before, on_grid, plain
from robustbench_sparse.certificate.probes.ways import WAYS, later
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.foundation.streams import derive

PROJECT = "this project's"
MARGIN = (
    0.01  # of the largest difference of an image's logits: what lies closer together may swap by rounding
)
NOISY = 5.0  # times the difference between passes: what lies closer together may swap by chance
REPEATS = 3
WAYS_ASKED = len(WAYS) + 4 + REPEATS  # of U5, about
STEADY = 0.2  # share of images with such a lead, or nothing can be said
ALLOWED, AT_LEAST = 0.02, 2  # share, and number, of images whose prediction may change
QUERIES = 1000
WAYS_SHARE, STATE_SHARE = 0.15, 0.1  # of the budget
MOST_CHANGES = 10  # names that are listed
RULE = (
    f"fewer than {AT_LEAST} of the images, or <= {100 * ALLOWED:g} %, change their prediction where both answers have "
    f"a margin above {100 * MARGIN:g} % of the logits' range, and above {NOISY:g} times the difference between passes"
)


def network_can_be_copied(s: Subject) -> Finding:
    """A fresh copy."""
    if s.fresh.why:
        return Finding(status="failed", done="copying the network before its first query", why=s.fresh.why)
    changed = User.of(s).changed
    done = "copied before its first query; a copy asked in several ways, and what it holds compared before and after"
    measured: dict[str, Value] = {"changed_by_being_asked": changed[:MOST_CHANGES]}
    return ruled(True, done, measured)


NETWORK_CAN_BE_COPIED = Check(
    id="U3",
    title="the network can be looked at as it was before the first query",
    source=PROJECT,
    rule="the network has a deep copy; what asking changes in it is listed and no fault as long as no answer changes",
    meaning="Nothing can be said of what the network remembers of its evaluation.",
    advice="Let copy.deepcopy work on the network; keep no locks, files or shared tensors in it.",
    run=network_can_be_copied,
)


@dataclass(frozen=True)
class Asked:
    """Images, and how they are answered in use.

    Attributes:
        x: images (B, C, H, W).
        index: numbers of their noise's streams.
        clean: the clean image that each belongs to, (B, C, H, W).
        logits: answers in use, (B, K).
        spread: largest difference of a logit between passes, (B,).
    """

    x: Tensor
    index: list[int]
    clean: Tensor
    logits: Tensor
    spread: Tensor

    def changed(self, other: Tensor) -> Tensor:
        """Images whose prediction is another one in other answers (B, K), and clearly so; bool (B,)."""
        old, new = (_lead(t.float(), self.spread) for t in (self.logits, other))
        differs = self.logits.argmax(1) != other.argmax(1)
        return differs & old & new & self.logits.isfinite().all(1) & other.isfinite().all(1)


def _lead(logits: Tensor, spread: Tensor) -> Tensor:
    """Whether the largest logit leads by more than rounding and chance, (B,)."""
    first = logits.argmax(1)
    lead = -margin(logits, first)
    return lead > torch.maximum(MARGIN * (logits.amax(1) - logits.amin(1)), NOISY * spread)


def images_asked(user: User) -> int:
    """How many images of each of three kinds U4 and U5 can afford to ask about."""
    return max(4, min(16, user.affordable(WAYS_SHARE) // (3 * WAYS_ASKED)))


def asked_of(s: Subject) -> Asked | None:
    """The images that are asked in several ways, the same for every check; None without any."""
    if "_asked" not in s.__dict__:
        s.__dict__["_asked"] = _asked(s) if len(s) else None
    found: Asked | None = s.__dict__["_asked"]
    return found


def _asked(s: Subject) -> Asked:
    user = User.of(s)
    count = images_asked(user)
    student = substitute_of(s) if 0 < s.threat.eps < float("inf") else None
    rows = torch.arange(len(s), device=s.x.device)
    broken = (s.found.correct[rows] < 0.5) & s.found.correct.isfinite()
    tried = torch.where(
        broken.view(-1, 1, 1, 1), s.found.candidate, s.x if student is None else student.candidate
    )
    fooled = broken if student is None else broken | (student.correct < 0.5)
    if student is not None:  # what fooled a user, before what fooled an attack
        mine = (student.correct < 0.5).view(-1, 1, 1, 1)
        tried = torch.where(mine, student.candidate, tried)
    order = torch.cat([fooled.nonzero().flatten(), (~fooled).nonzero().flatten()])[:count]
    generator = torch.Generator().manual_seed(derive(s.seed, "certificate/use"))
    pairs = torch.randperm(len(s), generator=generator)[:count].to(s.x.device)
    between = (255 * (s.x[pairs] + s.x[pairs.roll(1)]) / 2).round() / 255
    near = on_grid(tried[order], s.x[order], s.threat)
    x = torch.cat([s.x[:count], near, between])
    clean = torch.cat([s.x[:count], s.x[order], s.x[pairs]])
    index = s.indices(torch.cat([rows[:count], order, pairs]))
    names = ["pass"] if user.random else [f"pass {k}" for k in range(REPEATS)]
    passes = torch.stack([user.alone(x, index, name=name) for name in names])
    spread = (passes - passes[:1]).abs().amax((0, 2)).nan_to_num(nan=0.0, posinf=0.0)
    return Asked(x, index, clean, passes[0], spread)


def _ruled(s: Subject, a: Asked, found: dict[str, int], done: str, failed: Sequence[str] = ()) -> Finding:
    """The rule on how many images changed, by what changed them."""
    allowed = max(AT_LEAST - 1, int(ALLOWED * len(a.x)))
    wrong = {k: v for k, v in found.items() if v > allowed}
    measured: dict[str, Value] = {
        "images": len(a.x),
        "most_changed": max(found.values(), default=0),
        "changed_by": [f"{k}: {v}" for k, v in sorted(wrong.items(), key=lambda item: -item[1])],
    }
    why = f"could not be asked so: {', '.join(failed)}" if failed else ""
    return ruled(not wrong, done, measured, why)


def _steady(s: Subject, a: Asked) -> bool:
    """Whether enough answers are the same from pass to pass: of others nothing can be said image by image."""
    return bool(a.changed(a.logits.roll(1, 0)).any() or len(a.x) == 1) and bool(
        _lead(a.logits.float(), a.spread).float().mean() > STEADY
    )


def being_asked_changes_nothing(s: Subject) -> Finding:
    """Fresh copies against copies, and a network, that were asked a lot."""
    a, user = asked_of(s), User.of(s)
    if a is None or s.fresh.why:
        return skipped(s.fresh.why or "no images")
    if not _steady(s, a):
        return skipped("its answers differ from pass to pass, or are all alike")
    with as_before(s.x.device):
        found = {"the evaluation": int(a.changed(_of_judged(user, a)).sum())}
    queries = max(100, min(QUERIES, user.affordable(STATE_SHARE)))
    with as_before(s.x.device), user.network(new=True) as network:
        for part in _queries(s, queries):
            with user.streams(network, [0] * len(part), "many"):
                plain(network, part)
        found[f"{queries} queries"] = int(a.changed(_after_clean(user, network, a)).sum())
    older = aged(user, lambda network: _after_clean(user, network, a, clean=False))
    if older is not None:
        found["a counter turned on"] = int(a.changed(older).sum())
    done = (
        f"{len(a.x)} images asked of fresh copies, of the network once it was judged, and of a copy after {queries} "
        "queries, each image's clean one right before it"
    )
    return _ruled(s, a, found, done)


BEING_ASKED_CHANGES_NOTHING = Check(
    id="U4",
    title="being asked changes no answer",
    source=PROJECT,
    rule=f"between a fresh copy and a network that was asked often: {RULE}",
    meaning="The network remembers what it was asked. " + TOLD_APART,
    advice="Judge it without its memory: attributes, buffers, closures and globals that forward writes to (see U3).",
    run=being_asked_changes_nothing,
    refutes=True,
)


def _of_judged(user: User, a: Asked) -> Tensor:
    """What the judged network itself says now, asked like the copies."""
    network, name = user.s.model, "pass" if user.random else "pass 0"
    each = [
        (network, a.x[i : i + 1], partial(user.streams, network, [a.index[i]], name)) for i in range(len(a.x))
    ]
    return torch.cat(used(each, hide=bool(user.s.fresh.spaces)))


def _after_clean(user: User, network: nn.Module, a: Asked, clean: bool = True) -> Tensor:
    """Answers to images that are asked alone, each after its clean image, of one copy."""
    each: list[Query] = []
    for i in range(len(a.x)):
        prepared = partial(user.streams, network, [a.index[i]], "pass" if user.random else "pass 0")
        each += [(network, t[i : i + 1], prepared) for t in ((a.clean, a.x) if clean else (a.x,))]
    out = used(each, hide=bool(user.s.fresh.spaces))
    return torch.cat(out[1::2] if clean else out)


def _queries(s: Subject, count: int) -> Iterator[Tensor]:
    """Batches of images near the subject's: half of the queries alone, half by 50."""
    generator = torch.Generator().manual_seed(derive(s.seed, "certificate/queries"))
    size = min(s.threat.eps, 0.5) if s.threat.norm == "linf" else 0.05
    left = count
    for batch in (1, 50):
        for _ in range(max(1, count // 2 // batch)):
            if left <= 0:
                return
            rows = torch.randint(len(s), (batch,), generator=generator).to(s.x.device)
            noise = torch.rand(s.x[rows].shape, generator=generator).to(s.x) * 2 - 1
            yield (255 * (s.x[rows] + size * noise).clamp(0, 1)).round() / 255
            left -= batch


def answer_is_the_same_for_all(s: Subject) -> Finding:
    """The user's way against all others."""
    a, user = asked_of(s), User.of(s)
    if a is None:
        return skipped("no images")
    if not _steady(s, a):
        return skipped("its answers differ from pass to pass, or are all alike")
    found: dict[str, int] = {}
    failed: list[str] = []
    name = "pass" if user.random else "pass 0"
    ways: dict[str, Way] = {**WAYS, "asked a day later": later(s.fresh.spaces)}
    for label, way in ways.items():
        out = _tried(user, a, way, name)
        if out is None:
            failed.append(label)
        else:
            found[label] = int(a.changed(out).sum())
    if not user.random:  # a random network's draws may depend on the batch, which is another check's (R2)
        for label, groups in _batches(s, a).items():
            found[label] = int(a.changed(_grouped(user, a, groups, name)).sum())
    done = f"{len(a.x)} images asked in {len(found)} ways: {', '.join(found)}; against asked alone, of a fresh copy"
    return _ruled(s, a, found, done, failed)


ANSWER_IS_THE_SAME_FOR_ALL = Check(
    id="U5",
    title="the answer does not depend on who asks, and how",
    source=PROJECT,
    rule=f"between the user's way and any other: {RULE}",
    meaning=TOLD_APART,
    advice="Find what forward looks at beside the image: gradient mode, hooks, callers, clocks, the rest of the batch.",
    run=answer_is_the_same_for_all,
    refutes=True,
)


def _tried(user: User, a: Asked, way: Way, name: str) -> Tensor | None:
    try:
        return user.alone(a.x, a.index, way, name)
    except (Exception, SystemExit):  # no way of asking is promised to work
        return None


def _batches(s: Subject, a: Asked) -> dict[str, list[tuple[list[int], Tensor]]]:
    """Batches by name: the places within a batch of some images, and what else is in it."""
    n = len(a.x)
    order = torch.randperm(
        n, generator=torch.Generator().manual_seed(derive(s.seed, "certificate/batches"))
    ).tolist()
    none = a.x[:0]
    grey = torch.full_like(a.x[:1], 0.5)
    return {
        "all in a batch": [(order, none)],
        "batches of 2 and 7": [(order[i : i + 2], none) for i in range(0, n // 2, 2)]
        + [(order[i : i + 7], none) for i in range(2 * ((n // 2 + 1) // 2), n, 7)],
        "beside its clean image": [([i], a.clean[i : i + 1]) for i in range(n)],
        "beside clean images": [(order[i : i + 8], s.x[-8:]) for i in range(0, n, 8)],
        "beside grey and repeated": [([i], torch.cat([grey, a.x[i : i + 1], grey])) for i in range(n)],
    }


def _grouped(user: User, a: Asked, groups: list[tuple[list[int], Tensor]], name: str) -> Tensor:
    """Answers (B, K) to the images, asked in such batches; those of images in no batch are the user's."""
    parts = [(torch.cat([a.x[mine], beside]), [0] * (len(mine) + len(beside))) for mine, beside in groups]
    out = a.logits.clone()
    for (mine, _), logits in zip(groups, user.together(parts, name), strict=True):
        out[mine] = logits[: len(mine)].to(out)
    return out


CHECKS: tuple[Check, ...] = (
    NETWORK_CAN_BE_COPIED,
    BEING_ASKED_CHANGES_NOTHING,
    ANSWER_IS_THE_SAME_FOR_ALL,
)
