"""Checks M1 to M9: does the network hide from its attackers, or do the attacks fail?

Carlini et al. 2019, "On Evaluating Adversarial Robustness" (https://arxiv.org/abs/1902.06705); Athalye, Carlini,
Wagner 2018, "Obfuscated Gradients Give a False Sense of Security" (https://arxiv.org/abs/1802.00420).
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks import FGSM, PGD, NAttack, RandomSearch, Square, Threat, Transfer
from attacks.apgd import APGD
from attacks.losses import margin
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.subject import Attacked, Subject
from robustbench_sparse.foundation.intervals import wilson

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # of eps
ALLOWED = 0.002  # share of images that only a weaker attack may break
ONE = 1  # image that it may break by luck: thousands of queries near a boundary; it counts in the number all the same
FEW_FLIPS = 2  # images: what a repetition may flip on a subset too small for shares of half a percent
PATH_STEPS = 20
CARLINI, ATHALYE = "Carlini et al. 2019", "Athalye, Carlini, Wagner 2018"
OBFUSCATED = "The gradients do not lead to the adversarials that exist: the network hides them."
HARDER = "Add an attack without gradients (square), one on surrogates (transfer), and judge the row again."


def iterated_beats_one_step(s: Subject) -> Finding:
    """Iterated against one step."""
    one = s.attack(FGSM(eot=s.eot), "m1/fgsm")
    many = _path(s)
    done = f"FGSM and PGD-{PATH_STEPS} on {len(s)} images at eps = {s.threat.eps:.4g}"
    measured: dict[str, Value] = {
        "fgsm_acc": one.accuracy,
        "pgd_acc": many.accuracy,
        "tau": s.tau(many.correct, one.correct),
    }
    return ruled(not s.exceeds(many.correct, one.correct), done, measured)


ITERATED_BEATS_ONE_STEP = Check(
    id="M1",
    title="iterated attacks beat one step",
    source=f"{ATHALYE}; {CARLINI}",
    rule="accuracy under PGD <= accuracy under FGSM + tau",
    meaning="A longer walk finds less than one step: gradients lead astray, or the iteration is broken.",
    advice="Look at the step size and the loss; try margin and DLR losses and attacks without gradients.",
    run=iterated_beats_one_step,
)


def _path(s: Subject) -> Attacked:
    """PGD in the benchmark's ball, which the first two checks both look at."""
    return s.once("m1/pgd", lambda: s.attack(PGD(steps=PATH_STEPS, eot=s.eot), "m1/pgd"))


def accuracy_falls_with_eps(s: Subject) -> Finding:
    """Accuracy over eps."""
    if s.threat.eps == 0:
        return skipped("eps is 0")
    ladder, correct = [f * s.threat.eps for f in FACTORS], []
    walk = PGD(steps=PATH_STEPS, eot=s.eot)
    for factor, eps in zip(FACTORS, ladder, strict=True):
        threat = Threat(norm=s.threat.norm, eps=eps)
        found = _path(s) if factor == 1 else s.attack(walk, f"m2/{eps}", threat=threat)
        correct.append(found.correct)
    rises = [s.exceeds(correct[j], correct[i]) for i in range(len(ladder)) for j in range(i + 1, len(ladder))]
    accuracies = [r.mean().item() for r in correct]
    largest = max(max(accuracies[i + 1 :], default=0.0) - a for i, a in enumerate(accuracies))
    done = f"PGD-{PATH_STEPS} at {len(ladder)} values of eps on {len(s)} images"
    return ruled(not any(rises), done, {"eps": ladder, "acc": accuracies, "largest_rise": max(0.0, largest)})


ACCURACY_FALLS_WITH_EPS = Check(
    id="M2",
    title="accuracy falls as eps grows",
    source=f"{CARLINI}; {ATHALYE}",
    rule="over eight eps, accuracy nowhere rises by more than tau",
    meaning="A larger ball holds the smaller one, so a rise means that the optimizer fails.",
    advice="More steps, other step sizes, random restarts; then judge again.",
    run=accuracy_falls_with_eps,
)


def large_budget_breaks_all(s: Subject) -> Finding:
    """A budget so large that any class can be reached."""
    grey = Threat(norm="linf", eps=0.5)
    rows = s.correct_rows
    hit = s.in_two(PGD(steps=s.budget.steps, eot=s.eot), "m3/ce", rows, grey)
    correct = hit.correct.clone()
    remaining = (correct > 0.5).nonzero().flatten()
    if len(remaining):
        harder = PGD(steps=s.budget.steps, loss="margin", restarts=2, eot=s.eot)
        correct[remaining] = s.in_two(harder, "m3/margin", rows[remaining], grey).correct
    low, _ = wilson(correct.sum().item(), len(s))
    done = f"PGD-{s.budget.steps} on cross-entropy and margin at l_inf 0.5 on {len(s)} images"
    return ruled(
        low <= 1 / s.classes, done, {"acc": correct.sum().item() / len(s), "chance_acc": 1 / s.classes}
    )


LARGE_BUDGET_BREAKS_ALL = Check(
    id="M3",
    title="a large budget breaks everything",
    source=f"{CARLINI}; {ATHALYE}",
    rule="at l_inf 0.5, where any image can become plain grey, accuracy <= chance (its 95 % interval reaches 1/K)",
    meaning=OBFUSCATED,
    advice=HARDER,
    run=large_budget_breaks_all,
)


def unbounded_attack_succeeds(s: Subject) -> Finding:
    """No bound but the box."""
    _, both = s.unbounded
    remaining = s.correct_rows[both.correct > 0.5]
    done = f"PGD, at least 100 steps, the whole box as ball, on the {len(s.correct_rows)} images classified right"
    measured: dict[str, Value] = {
        "acc": both.accuracy if len(both.correct) else 0.0,
        "standing": s.indices(remaining[:20]),
    }
    return ruled(len(remaining) == 0, done, measured)


UNBOUNDED_ATTACK_SUCCEEDS = Check(
    id="M4",
    title="an unbounded attack succeeds always",
    source=f"{CARLINI}; Pintor et al. 2022",
    rule="with the whole box as ball no image that was classified right stays so",
    meaning="Masking, or a broken attack: with no bound, any image can be turned into one of another class.",
    advice=HARDER,
    run=unbounded_attack_succeeds,
)


def cross_entropy_leads_somewhere(s: Subject) -> Finding:
    """Cross-entropy alone, no bound but the box."""
    ce, _ = s.unbounded
    low, _ = wilson(ce.correct.sum().item(), len(s))
    done = f"PGD on the cross-entropy, at least 100 steps, the whole box as ball, on {len(s)} images"
    measured: dict[str, Value] = {"acc": ce.correct.sum().item() / len(s), "chance_acc": 1 / s.classes}
    return ruled(low <= 1 / s.classes, done, measured)


CROSS_ENTROPY_LEADS_SOMEWHERE = Check(
    id="M5",
    title="the cross-entropy leads somewhere",
    source="Adversarial Robustness Toolbox; Athalye, Carlini, Wagner 2018",
    rule="PGD on the cross-entropy over the whole box: accuracy <= chance (its 95 % interval reaches 1/K)",
    meaning="The gradients of the cross-entropy are obfuscated: too small, saturated or wrong.",
    advice="Use losses that do not saturate (margin, dlr); rows judged by the cross-entropy alone say nothing.",
    run=cross_entropy_leads_somewhere,
)


def more_effort_changes_nothing(s: Subject) -> Finding:
    """Twice the steps, twice the restarts."""
    b = s.budget
    once = s.attack(APGD(steps=b.steps, loss="margin", eot=s.eot), "m6/once")
    longer = s.attack(APGD(steps=2 * b.steps, loss="margin", eot=s.eot), "m6/once")
    # A restart is one more path from another start: the first path is there, and so are half of twice as many.
    many = _further(s, once, b.restarts - 1, "m6/restarts")
    more = _further(s, many, b.restarts, "m6/more")
    change = _loss_change(s, once, longer)

    def settled(before: Tensor, after: Tensor) -> bool:
        # A longer walk takes other steps: now and then it misses what the shorter one found, and the gain is negative.
        gain = before - after
        few = (gain > 0.5).sum().item() <= FEW_FLIPS or not s.exceeds(before, after)
        return bool(gain.mean().item() <= 0.005 or few)

    done = (
        f"APGD on the margin, {b.steps} and {2 * b.steps} steps, {b.restarts} and {2 * b.restarts} restarts, on "
        f"{len(s)} images"
    )
    measured: dict[str, Value] = {
        "acc_steps": [once.accuracy, longer.accuracy],
        "acc_restarts": [many.accuracy, more.accuracy],
        "loss_change_share": change,
    }
    return ruled(
        settled(once.correct, longer.correct) and settled(many.correct, more.correct), done, measured
    )


MORE_EFFORT_CHANGES_NOTHING = Check(
    id="M6",
    title="more steps and restarts change nothing",
    source=CARLINI,
    rule="doubling either changes accuracy by <= 0.5 points, or by <= 2 images, or by <= tau; the loss is reported",
    meaning="The attack has not converged: the number would fall with more of it.",
    advice="Raise steps and restarts until the number stays.",
    run=more_effort_changes_nothing,
)


def _further(s: Subject, before: Attacked, paths: int, name: str) -> Attacked:
    """Some more paths on what stands, and the better of old and new for each image.

    A random network's images are judged anew: the smaller of two noisy shares flatters the attack.
    """
    rows = (before.correct > 0).nonzero().flatten()
    if paths == 0 or len(rows) == 0:
        return before
    attack = APGD(steps=s.budget.steps, loss="margin", restarts=paths, eot=s.eot)
    new = s.attack(attack, name, rows=rows)
    candidate, correct = before.candidate.clone(), before.correct.clone()
    better = new.correct < correct[rows]
    candidate[rows[better]], correct[rows[better]] = new.candidate[better], new.correct[better]
    return Attacked(candidate, s.judged(candidate, f"{name}/again") if s.stochastic else correct)


def _loss_change(s: Subject, once: Attacked, longer: Attacked) -> float:
    """Mean growth of the margin on images that stand in both, as a share of what the attack moved it by."""
    rows = ((once.correct > 0.5) & (longer.correct > 0.5)).nonzero().flatten()
    if len(rows) == 0:
        return 0.0
    before, first, second = (_margin(s, x[rows], rows) for x in (s.x, once.candidate, longer.candidate))
    moved = (first - before).abs().mean().clamp_min(1e-12)
    return float(((second - first).mean() / moved).item())


def _margin(s: Subject, x: Tensor, rows: Tensor) -> Tensor:
    return margin(s.logits(x, s.random("m6/margin", rows)), s.y[rows])


def black_box_finds_no_more(s: Subject) -> Finding:
    """Black box against white box."""
    b = s.budget
    # Where the white box has won, a black box can do no better, and counts as equal.
    correct = s.white.correct.clone()
    rows = (correct > 0.5).nonzero().flatten()
    black = s.attack(Square(queries=b.queries, eot=_answers(s)), "m7/square", rows=rows)
    correct[rows] = black.correct
    only = s.only_here(black, rows)
    few = s.few[s.white.correct[s.few] > 0.5]
    if len(few):
        steps = max(1, b.queries // 101)
        evolved = s.attack(
            NAttack(samples=100, steps=steps, learning_rate=0.1, eot=_answers(s)), "m7/nattack", rows=few
        )
        correct[few] = torch.minimum(correct[few], evolved.correct)
        only = _joined(only, s.only_here(evolved, few))
    done = (
        f"Square with {b.queries} queries on the {len(rows)} images that the white box left, NAttack with as many on "
        f"{len(few)} of them; of the {len(s)} images the others count as broken"
    )
    return _weaker(s, correct, only, "black_acc", done)


BLACK_BOX_FINDS_NO_MORE = Check(
    id="M7",
    title="no black box beats the white box",
    source=f"Croce & Hein 2020 (AutoAttack); {CARLINI}",
    rule="images that only Square or NAttack breaks, and no second, harder try of the white box: <= 0.2 %, or one; and "
    "accuracy >= the white box's - tau",
    meaning=OBFUSCATED,
    advice="Report the black-box number; find out which layer hides the gradient (G1, T2).",
    run=black_box_finds_no_more,
)


def chance_finds_nothing(s: Subject) -> Finding:
    """Chance alone."""
    rows = s.correct_rows[s.white.correct[s.correct_rows] > 0.5]
    rows = rows[: max(s.budget.few, len(s) // 4)]
    if len(rows) == 0:
        return skipped("the white box left no image standing")
    if s.threat.eps == float("inf"):
        return skipped("no uniform draws from an unbounded ball")
    hit = s.attack(RandomSearch(queries=s.budget.random_draws, eot=_answers(s)), "m8", rows=rows)
    only = s.only_here(hit, rows)
    done = f"{s.budget.random_draws} random draws per image on {len(rows)} images that the white box left"
    measured: dict[str, Value] = {"broken_by_chance": len(only), "images": s.indices(only[:20])}
    return ruled(len(only) == 0, done, measured)


CHANCE_FINDS_NOTHING = Check(
    id="M8",
    title="chance finds nothing more",
    source=CARLINI,
    rule="random draws break no image that the white box, tried again and harder, leaves",
    meaning=OBFUSCATED,
    advice=HARDER,
    run=chance_finds_nothing,
)


def nothing_more_transfers(s: Subject) -> Finding:
    """Adversarials of the twin and of the dense parent."""
    sources = dict(pair for pair in (s.context.twin, s.context.parent) if pair is not None)
    if not sources:
        return skipped("the benchmark has no undefended run of this architecture, and no dense parent of it")
    rows, correct = torch.arange(len(s), device=s.x.device), s.clean.clone()
    only = rows[:0]
    for name, network in sources.items():
        attack = Transfer(source=name, steps=s.budget.steps, eot=s.eot).on(network)
        hit = s.attack(attack, f"m9/{name}", on=s.model)
        correct = torch.minimum(correct, hit.correct)
        only = _joined(only, s.only_here(hit, rows))
    names = " and ".join(sources)
    done = f"PGD-{s.budget.steps} with momentum, made on {names}, on {len(s)} images"
    return _weaker(s, correct, only, "transfer_acc", done)


NOTHING_MORE_TRANSFERS = Check(
    id="M9",
    title="nothing transfers from the twin that the white box missed",
    source=f"{CARLINI}; {ATHALYE}",
    rule="images that only a transferred adversarial breaks, and no second, harder try of the white box: <= 0.2 %, or "
    "one of them; and accuracy >= the white box's - tau",
    meaning="The defense, or the mask of zeros, hides gradients that its twin or dense parent still has.",
    advice="Add `transfer` from that run to the benchmark's attacks.",
    run=nothing_more_transfers,
)


def _weaker(s: Subject, correct: Tensor, only: Tensor, name: str, done: str) -> Finding:
    """The verdict on an attack that must not do better than the white box."""
    allowed = max(ONE, int(ALLOWED * len(s)))
    measured: dict[str, Value] = {
        name: correct.mean().item(),
        "white_acc": s.white.accuracy,
        "only_here": len(only),
        "images": s.indices(only[:20]),
    }
    return ruled(len(only) <= allowed and not s.exceeds(s.white.correct, correct), done, measured)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """Rows of either, each once, ascending."""
    return torch.tensor(sorted({*first.tolist(), *second.tolist()}), dtype=torch.long, device=first.device)


def _answers(s: Subject) -> int:
    """Passes averaged per query on a random network: fewer than for gradients, as there are so many queries."""
    return max(1, s.eot // 4) if s.stochastic else 1


CHECKS: tuple[Check, ...] = (
    ITERATED_BEATS_ONE_STEP,
    ACCURACY_FALLS_WITH_EPS,
    LARGE_BUDGET_BREAKS_ALL,
    UNBOUNDED_ATTACK_SUCCEEDS,
    CROSS_ENTROPY_LEADS_SOMEWHERE,
    MORE_EFFORT_CHANGES_NOTHING,
    BLACK_BOX_FINDS_NO_MORE,
    CHANCE_FINDS_NOTHING,
    NOTHING_MORE_TRANSFERS,
)
