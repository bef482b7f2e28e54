"""Checks U1 and U2: adversarials that are looked for, and judged, as the network is used.

On fresh copies, on images of whole bytes, each asked alone. A network that tells an evaluation from use shows its
other face there: one that remembers its queries, answers otherwise off the 8-bit grid, or by what shares the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.probes.student import LEAST, LESSONS, RESERVED, Substitute
from robustbench_sparse.certificate.probes.user import LEVELS, User, on_grid, plain
from robustbench_sparse.certificate.subject import Attacked, Subject

ALLOWED, AT_LEAST = 0.02, 2  # share, and number, of images that only the check breaks
STUDENT_SHARE, GRID_SHARE = 0.4, 0.35  # of the budget
TARGETS, STEPS = 4, 4  # classes that are walked to, steps of each walk
WALK = 4  # passes that a step takes: forward twice, backward, the verdict
MOST = 48  # images
NOTHING_LEFT = f"the white box leaves fewer than {AT_LEAST} images"
PAPERNOT = "Papernot et al. 2017 (arXiv 1602.02697)"
TOLD_APART = "The network answers an evaluation otherwise than it answers those who use it."


def substitute_of(s: Subject) -> Substitute | None:
    """The subject's substitute, the same one for every check; None without images to learn from, or to break."""
    if "_substitute" not in s.__dict__:
        user, images = User.of(s), s.context.images
        most = user.affordable(STUDENT_SHARE) - 3 * len(s) if images is not None else 0
        room = 2 * (images.count("train") - RESERVED) if images is not None else 0
        count = min(LESSONS, room, max(most, LEAST))
        s.__dict__["_substitute"] = Substitute(user, count) if count >= LEAST and _stand(s) else None
    found: Substitute | None = s.__dict__["_substitute"]
    return found


def _stand(s: Subject) -> bool:
    """Whether the white box leaves so many images that a check could accuse for them."""
    return int((s.white.correct > 0.5).sum()) >= AT_LEAST


def student_finds_no_more(s: Subject) -> Finding:
    """A student's adversarials against the white box's."""
    if not len(s) or s.threat.eps == 0 or s.threat.eps == float("inf"):
        return skipped("no images, or no ball")
    student = substitute_of(s)
    if student is None:
        return skipped(NOTHING_LEFT if not _stand(s) else "no images to learn the network's answers from")
    rows = torch.arange(len(s), device=s.x.device)
    done = (
        f"a small network learnt {student.asked} of this one's answers, asked alone on fresh copies without gradients; "
        f"its adversarials, of whole bytes, on {len(s)} images"
    )
    measured: dict[str, Value] = {
        "student_agrees_share": student.agrees,
        "student_acc": student.correct.mean().item(),
    }
    return _verdict(s, Attacked(student.candidate, student.correct), rows, done, measured)


STUDENT_FINDS_NO_MORE = Check(
    id="U1",
    title="a student's adversarials fool no more than the white box's",
    source=f"{PAPERNOT}; this project's rule",
    rule="images broken in use by the adversarials of a network that learnt the answers, and by no second, harder try "
    f"of the white box: fewer than {AT_LEAST}, or <= {100 * ALLOWED:g} %",
    meaning=TOLD_APART + " The student needs no gradient and no trust: what it breaks is broken.",
    advice="Report the accuracy found in use; look for state, and for code that looks at its input or its caller.",
    run=student_finds_no_more,
    refutes=True,
)


def _verdict(s: Subject, hit: Attacked, rows: Tensor, done: str, measured: dict[str, Value]) -> Finding:
    s.note(rows, hit.candidate, hit.correct)
    only = s.only_here(hit, rows)
    measured |= {"white_acc": s.white.accuracy, "only_here": len(only), "images": s.indices(only[:20])}
    return ruled(len(only) < AT_LEAST or len(only) <= ALLOWED * len(s), done, measured)


def use_finds_no_more(s: Subject) -> Finding:
    """A white box in use against the white box."""
    if not len(s) or s.threat.eps == 0 or s.threat.eps == float("inf"):
        return skipped("no images, or no ball")
    if not _stand(s):
        return skipped(NOTHING_LEFT)
    user, rows, start = User.of(s), s.correct_rows, s.x
    student = s.__dict__.get("_substitute")
    if student is not None:
        rows, start = rows[student.correct[rows] > 0.5], student.candidate
    count = max(4, user.affordable(GRID_SHARE) // (WALK * STEPS * TARGETS * user.draws))
    rows = rows[: min(count, MOST)]
    if len(rows) == 0:
        return skipped("no image stands in use")
    candidate = torch.cat([_climb(user, start[r : r + 1], r) for r in rows.tolist()])
    hit = Attacked(candidate, user.correct(candidate, rows))
    done = (
        f"{STEPS} steps towards each of {min(TARGETS, s.classes - 1)} classes, each to an image of whole bytes, asked "
        f"alone of a fresh copy, on {len(rows)} images"
    )
    return _verdict(s, hit, rows, done, {"in_use_acc": hit.accuracy})


USE_FINDS_NO_MORE = Check(
    id="U2",
    title="an attack in use finds no more than the white box",
    source="this project's",
    rule="images broken by an attack that stays on the 8-bit grid and asks fresh copies, one image at a time, and by "
    f"no second, harder try of the white box: fewer than {AT_LEAST}, or <= {100 * ALLOWED:g} %",
    meaning=TOLD_APART,
    advice="Report the accuracy found in use; look for state, and for code that looks at its input or its batch.",
    run=use_finds_no_more,
    refutes=True,
)


def _climb(user: User, start: Tensor, row: int) -> Tensor:
    """The first point that fools of walks towards each of some classes, or the last point of all; (1, C, H, W)."""
    s = user.s
    x, y, index = s.x[row : row + 1], s.y[row : row + 1], s.indices(torch.tensor([row]))
    first = user.alone(x, index, name="climb")
    order = first.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[0, : s.classes - 1]
    point = on_grid(start, x, s.threat)
    for target in order[:TARGETS].tolist():
        for k in range(STEPS):
            out, slope = _slope(user, point, y, target, index)
            if bool(out.argmax(1) != y) and not user.random:
                return point
            if slope is None:
                return point
            step = s.threat.eps * 0.5**k
            if s.threat.norm == "linf":
                point = on_grid(point + max(step, 1 / LEVELS) * slope.sign(), x, s.threat)
            else:
                point = on_grid(point + step * slope / slope.norm().clamp_min(1e-30), x, s.threat)
        if bool(user.alone(point, index, name="climb").argmax(1) != y):
            return point
        start, point = point, x
    return start


def _slope(
    user: User, point: Tensor, y: Tensor, target: int, index: list[int]
) -> tuple[Tensor, Tensor | None]:
    """Answer in use, and the gradient of the target's lead over the label; None where the network has none."""
    seen: list[Tensor] = []

    def ask(network: nn.Module, at: Tensor) -> Tensor:
        before = plain(network, at)
        with torch.enable_grad():
            leaf = at.clone().requires_grad_(True)
            out: Tensor = network(leaf)
            lead = out[:, target].sum() - out.gather(1, y[:, None]).sum()
            if lead.requires_grad:
                seen.extend(g for g in torch.autograd.grad(lead, leaf, allow_unused=True) if g is not None)
        return before

    out = user.alone(point, index, ask, "climb")
    usable = bool(seen) and bool(seen[0].isfinite().all()) and bool(seen[0].any())
    return out, seen[0] if usable else None


CHECKS: tuple[Check, ...] = (
    STUDENT_FINDS_NO_MORE,
    USE_FINDS_NO_MORE,
)
