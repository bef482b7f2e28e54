"""Checks M: does the network hide from its attackers, or do the attacks fail?

Carlini et al. 2019, "On Evaluating Adversarial Robustness" (https://arxiv.org/abs/1902.06705); Athalye, Carlini,
Wagner 2018, "Obfuscated Gradients Give a False Sense of Security" (https://arxiv.org/abs/1802.00420).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks import FGSM, PGD, NAttack, RandomSearch, Square, Threat, Transfer
from attacks.apgd import APGD
from attacks.losses import margin
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.probes.surrogates import Scaled
from robustbench_sparse.certificate.subject import Attacked, Subject
from robustbench_sparse.foundation.intervals import wilson

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # of eps
ALLOWED = 0.002  # share of images that only a weaker attack may break
FEW_FLIPS = 2  # images: what a repetition may flip on a subset too small for shares of half a percent
PATH_STEPS = 20
HARMLESS = 0.01


def m1(s: Subject) -> Finding:
    """Iterated against one step."""
    one = s.attack(FGSM(eot=s.eot), "m1/fgsm")
    many = s.attack(PGD(steps=PATH_STEPS, eot=s.eot), "m1/pgd")
    done = f"FGSM and PGD-{PATH_STEPS} on {len(s)} images at eps = {s.threat.eps:.4g}"
    measured: dict[str, Value] = {
        "fgsm_acc": one.accuracy,
        "pgd_acc": many.accuracy,
        "tau": s.tau(many.right, one.right),
    }
    return ruled(not s.exceeds(many.right, one.right), done, measured)


def m2(s: Subject) -> Finding:
    """Accuracy over eps."""
    if s.threat.eps == 0:
        return skipped("eps is 0")
    ladder, right = [f * s.threat.eps for f in FACTORS], []
    for eps in ladder:
        threat = Threat(norm=s.threat.norm, eps=eps)
        right.append(s.attack(PGD(steps=PATH_STEPS, eot=s.eot), f"m2/{eps}", threat=threat).right)
    rises = [s.exceeds(right[j], right[i]) for i in range(len(ladder)) for j in range(i + 1, len(ladder))]
    accuracies = [r.mean().item() for r in right]
    largest = max(max(accuracies[i + 1 :], default=0.0) - a for i, a in enumerate(accuracies))
    done = f"PGD-{PATH_STEPS} at {len(ladder)} values of eps on {len(s)} images"
    return ruled(not any(rises), done, {"eps": ladder, "acc": accuracies, "largest_rise": max(0.0, largest)})


def m3(s: Subject) -> Finding:
    """A budget so large that any class can be reached."""
    grey = Threat(norm="linf", eps=0.5)
    rows = s.right_rows
    hit = s.attack(PGD(steps=s.budget.steps, eot=s.eot), "m3/ce", rows=rows, threat=grey)
    right = hit.right.clone()
    left = (right > 0.5).nonzero().flatten()
    if len(left):
        harder = PGD(steps=s.budget.steps, loss="margin", restarts=2, eot=s.eot)
        right[left] = s.attack(harder, "m3/margin", rows=rows[left], threat=grey).right
    low, _ = wilson(right.sum().item(), len(s))
    done = f"PGD-{s.budget.steps} on cross-entropy and margin at l_inf 0.5 on {len(s)} images"
    return ruled(
        low <= 1 / s.classes, done, {"acc": right.sum().item() / len(s), "chance_acc": 1 / s.classes}
    )


def m4(s: Subject) -> Finding:
    """No bound but the box."""
    _, both = s.unbounded
    left = s.right_rows[both.right > 0.5]
    done = (
        f"PGD, at least 100 steps, the whole box as ball, on the {len(s.right_rows)} images classified right"
    )
    measured: dict[str, Value] = {
        "acc": both.accuracy if len(both.right) else 0.0,
        "standing": s.indices(left[:20]),
    }
    return ruled(len(left) == 0, done, measured)


def m5(s: Subject) -> Finding:
    """Cross-entropy alone, no bound but the box."""
    ce, _ = s.unbounded
    low, _ = wilson(ce.right.sum().item(), len(s))
    done = f"PGD on the cross-entropy, at least 100 steps, the whole box as ball, on {len(s)} images"
    measured: dict[str, Value] = {"acc": ce.right.sum().item() / len(s), "chance_acc": 1 / s.classes}
    return ruled(low <= 1 / s.classes, done, measured)


def m6(s: Subject) -> Finding:
    """Twice the steps, twice the restarts."""
    b = s.budget
    once = s.attack(APGD(steps=b.steps, loss="margin", eot=s.eot), "m6/once")
    longer = s.attack(APGD(steps=2 * b.steps, loss="margin", eot=s.eot), "m6/once")
    many = s.attack(APGD(steps=b.steps, loss="margin", restarts=b.restarts, eot=s.eot), "m6/restarts")
    more = s.attack(APGD(steps=b.steps, loss="margin", restarts=2 * b.restarts, eot=s.eot), "m6/restarts")
    steps, restarts = (once.right - longer.right), (many.right - more.right)
    change = _loss_change(s, once, longer)

    def settled(gain: Tensor) -> bool:
        few = (gain > 0.5).sum().item() <= FEW_FLIPS or not s.exceeds(gain, torch.zeros_like(gain))
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
    return ruled(settled(steps) and settled(restarts), done, measured)


def _loss_change(s: Subject, once: Attacked, longer: Attacked) -> float:
    """Mean growth of the margin on images that stand in both, as a share of what the attack moved it by."""
    rows = ((once.right > 0.5) & (longer.right > 0.5)).nonzero().flatten()
    if len(rows) == 0:
        return 0.0
    before, first, second = (_margin(s, x[rows], rows) for x in (s.x, once.candidate, longer.candidate))
    moved = (first - before).abs().mean().clamp_min(1e-12)
    return float(((second - first).mean() / moved).item())


def _margin(s: Subject, x: Tensor, rows: Tensor) -> Tensor:
    return margin(s.logits(x, s.random("m6/margin", rows)), s.y[rows])


def m7(s: Subject) -> Finding:
    """Black box against white box."""
    b = s.budget
    black = s.attack(Square(queries=b.queries, eot=_answers(s)), "m7/square")
    right = black.right.clone()
    only = s.only_here(black, torch.arange(len(s), device=s.x.device))
    few = s.few[s.white.right[s.few] > 0.5]
    if len(few):
        steps = max(1, b.queries // 101)
        evolved = s.attack(
            NAttack(samples=100, steps=steps, learning_rate=0.1, eot=_answers(s)), "m7/nattack", rows=few
        )
        right[few] = torch.minimum(right[few], evolved.right)
        only = _joined(only, s.only_here(evolved, few))
    done = (
        f"Square with {b.queries} queries on {len(s)} images, NAttack with as many on {len(few)} of those that the "
        "white box left"
    )
    return _weaker(s, right, only, "black_acc", done)


def m8(s: Subject) -> Finding:
    """Chance alone."""
    rows = s.right_rows[s.white.right[s.right_rows] > 0.5]
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


def m9(s: Subject) -> Finding:
    """Adversarials of the twin and of the dense parent."""
    sources = dict(pair for pair in (s.context.twin, s.context.parent) if pair is not None)
    if not sources:
        return skipped("the benchmark has no undefended run of this architecture, and no dense parent of it")
    rows, right = torch.arange(len(s), device=s.x.device), s.clean.clone()
    only = rows[:0]
    for name, network in sources.items():
        attack = Transfer(source=name, steps=s.budget.steps, eot=s.eot).on(network)
        hit = s.attack(attack, f"m9/{name}", on=s.model)
        right = torch.minimum(right, hit.right)
        only = _joined(only, s.only_here(hit, rows))
    names = " and ".join(sources)
    done = f"PGD-{s.budget.steps} with momentum, made on {names}, on {len(s)} images"
    return _weaker(s, right, only, "transfer_acc", done)


def _weaker(s: Subject, right: Tensor, only: Tensor, name: str, done: str) -> Finding:
    """The verdict on an attack that must not do better than the white box."""
    allowed = int(ALLOWED * len(s))
    measured: dict[str, Value] = {
        name: right.mean().item(),
        "white_acc": s.white.accuracy,
        "only_here": len(only),
        "images": s.indices(only[:20]),
    }
    return ruled(len(only) <= allowed and not s.exceeds(s.white.right, right), done, measured)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """Rows of either, each once, ascending."""
    return torch.tensor(sorted({*first.tolist(), *second.tolist()}), dtype=torch.long, device=first.device)


def _answers(s: Subject) -> int:
    """Passes averaged per query on a random network: fewer than for gradients, as there are so many queries."""
    return max(1, s.eot // 4) if s.stochastic else 1


def m10(s: Subject) -> Finding:
    """No perturbation, no effect."""
    plans = [plan for plan in s.context.plans if not plan.attack.own_set and plan.attack.bounded]
    if not plans:
        return skipped("the benchmark has no attack that stays in a ball")
    changed: list[str] = []
    for plan in plans:
        threat = Threat(norm=plan.threat.norm, eps=0.0)
        same = plan.attack(s.model, s.x, s.y, threat, s.random(f"m10/{plan.label}"))
        right = s.judged(same, "clean")  # the same draws as the clean verdict's
        if not (torch.equal(same, s.x) and torch.equal(right, s.clean)):
            changed.append(plan.label)
    clean = s.context.outcomes.get("clean")
    if clean is not None and not s.stochastic:
        stored = torch.tensor(clean.set_index("index").loc[s.index.tolist(), "correct"].to_numpy())
        if not torch.equal(stored.to(s.clean), s.clean):
            changed.append("clean")
    done = f"{len(plans)} attacks with eps = 0, and the stored clean verdicts, on {len(s)} images"
    return ruled(not changed, done, {"clean_acc": s.clean.mean().item(), "changed": changed})


def m11(s: Subject) -> Finding:
    """The same attacks against the undefended twin."""
    if s.context.twin is None and not s.context.undefended:
        return skipped("the benchmark has no undefended run of this architecture")
    name, network = s.context.twin or ("this network, which is undefended", s.model)
    twin = s.beside(network)
    twin.check = "M11"
    at_eps = twin.strongest("m11")
    low, _ = wilson(at_eps.right.sum().item(), len(s))
    measured: dict[str, Value] = {"acc_at_eps": at_eps.accuracy}
    broken = low <= HARMLESS
    if not broken:
        wide = Threat(norm=s.threat.norm, eps=4 * s.threat.eps)
        at_wide = twin.strongest("m11/wide", threat=wide)
        low, _ = wilson(at_wide.right.sum().item(), len(s))
        measured["acc_at_4_eps"] = at_wide.accuracy
        broken = low <= HARMLESS
    return ruled(broken, f"the white-box attacks against {name} on {len(s)} images", measured)


def m12(s: Subject) -> Finding:
    """The certificate against copies of this network that are broken on purpose."""
    rows = s.few
    if len(rows) == 0:
        return skipped("no image is classified right")
    open_acc = s.strongest("m12/open", rows=rows)
    hidden = s.strongest("m12/hidden", rows=rows, on=_Hidden(s.model))
    scaled = s.strongest("m12/scaled", rows=rows, on=Scaled(s.model, 1000.0))
    blind = PGD(steps=PATH_STEPS, eot=s.eot)
    before = s.attack(blind, "m12/pgd", rows=rows, on=_Hidden(s.model))
    gap = scaled.accuracy - open_acc.accuracy
    loss_of_hidden = hidden.accuracy - open_acc.accuracy
    # A gradient that is zero cannot be climbed: it must be seen, as G1 does. A scaled loss must be overcome.
    seen = _gradient_vanishes(_Hidden(s.model), s, rows)
    done = f"the white-box attacks against this network's logits x 1000, and behind a staircase, on {len(rows)} images"
    measured: dict[str, Value] = {
        "acc": open_acc.accuracy,
        "acc_logits_x_1000": scaled.accuracy,
        "acc_behind_a_staircase": hidden.accuracy,
        "acc_of_pgd_behind_it": before.accuracy,
        "staircase_seen": seen,
    }
    allowed = max(0.03, s.tau(scaled.right, open_acc.right))
    return ruled(gap <= allowed and (loss_of_hidden <= allowed or seen), done, measured)


class _Hidden(nn.Module):
    """The network behind a fine staircase: the same logits nearly, no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        out: Tensor = self.network((x * 2**16).round() / 2**16)
        return out


def _gradient_vanishes(network: nn.Module, s: Subject, rows: Tensor) -> bool:
    grad, _, _ = s.gradient(s.x[rows], "m12/gradient", margin, rows, network)
    return bool((grad.flatten(1).abs().amax(1) == 0).all())


def m13(s: Subject) -> Finding:
    """The row's number against the worst of everything, the checks' adversarials included."""
    if not s.context.outcomes:
        return skipped("the row has no outcomes of its own")
    reported, rows = s.reported, s.found.rows
    worst, candidate = reported.clone(), s.found.candidate
    if len(rows):
        draws = max(100, s.draws) if s.stochastic else 1
        again = s.judged(candidate[rows], "m13", rows, draws)  # fresh draws: the best of many flatters itself
        s.found.right[rows] = again
        worst[rows] = torch.minimum(worst[rows], again)
    lower = ((reported - worst) > 0.5).nonzero().flatten()
    by: dict[str, int] = {}
    for i in lower.tolist():
        by[s.found.by[i]] = by.get(s.found.by[i], 0) + 1
    done = f"the smallest verdict of the benchmark's attacks and of all checks on {len(s)} images"
    measured: dict[str, Value] = {
        "reported_acc": reported.mean().item(),
        "worst_acc": worst.mean().item(),
        "tau": s.tau(reported, worst),
        "newly_broken": len(lower),
        "by": [f"{k}: {v}" for k, v in sorted(by.items(), key=lambda item: -item[1])],
    }
    return ruled(not s.exceeds(reported, worst), done, measured)


CARLINI, ATHALYE = "Carlini et al. 2019", "Athalye, Carlini, Wagner 2018"
OBFUSCATED = "The gradients do not lead to the adversarials that exist: the network hides them."
HARDER = "Add an attack without gradients (square), one on surrogates (transfer), and judge the row again."
CHECKS: tuple[Check, ...] = (
    Check(
        id="M1",
        title="iterated attacks beat one step",
        source=f"{ATHALYE}; {CARLINI}",
        rule="accuracy under PGD <= accuracy under FGSM + tau",
        meaning="A longer walk finds less than one step: gradients lead astray, or the iteration is broken.",
        advice="Look at the step size and the loss; try margin and DLR losses and attacks without gradients.",
        run=m1,
    ),
    Check(
        id="M2",
        title="accuracy falls as eps grows",
        source=f"{CARLINI}; {ATHALYE}",
        rule="over eight eps, accuracy nowhere rises by more than tau",
        meaning="A larger ball holds the smaller one, so a rise means that the optimiser fails.",
        advice="More steps, other step sizes, random restarts; then judge again.",
        run=m2,
    ),
    Check(
        id="M3",
        title="a large budget breaks everything",
        source=f"{CARLINI}; {ATHALYE}",
        rule="at l_inf 0.5, where any image can become plain grey, accuracy <= chance (its 95 % interval reaches 1/K)",
        meaning=OBFUSCATED,
        advice=HARDER,
        run=m3,
    ),
    Check(
        id="M4",
        title="an unbounded attack succeeds always",
        source=f"{CARLINI}; Pintor et al. 2022",
        rule="with the whole box as ball no image that was classified right stays so",
        meaning="Masking, or a broken attack: with no bound, any image can be turned into one of another class.",
        advice=HARDER,
        run=m4,
    ),
    Check(
        id="M5",
        title="the cross-entropy leads somewhere",
        source="Adversarial Robustness Toolbox; Athalye, Carlini, Wagner 2018",
        rule="PGD on the cross-entropy over the whole box: accuracy <= chance (its 95 % interval reaches 1/K)",
        meaning="The gradients of the cross-entropy are obfuscated: too small, saturated or wrong.",
        advice="Use losses that do not saturate (margin, dlr); rows judged by the cross-entropy alone say nothing.",
        run=m5,
    ),
    Check(
        id="M6",
        title="more steps and restarts change nothing",
        source=CARLINI,
        rule="doubling either changes accuracy by <= 0.5 points, or by <= 2 images, or by <= tau; the loss is reported",
        meaning="The attack has not converged: the number would fall with more of it.",
        advice="Raise steps and restarts until the number stays.",
        run=m6,
    ),
    Check(
        id="M7",
        title="no black box beats the white box",
        source=f"Croce & Hein 2020 (AutoAttack); {CARLINI}",
        rule="images that only Square or NAttack breaks, and no second, harder try of the white box: <= 0.2 %; and "
        "accuracy >= the white box's - tau",
        meaning=OBFUSCATED,
        advice="Report the black-box number; find out which layer hides the gradient (G1, T2).",
        run=m7,
    ),
    Check(
        id="M8",
        title="chance finds nothing more",
        source=CARLINI,
        rule="random draws break no image that the white box, tried again and harder, leaves",
        meaning=OBFUSCATED,
        advice=HARDER,
        run=m8,
    ),
    Check(
        id="M9",
        title="nothing transfers from the twin that the white box missed",
        source=f"{CARLINI}; {ATHALYE}",
        rule="images that only a transferred adversarial breaks, and no second, harder try of the white box: <= 0.2 %; "
        "and accuracy >= the white box's - tau",
        meaning="The defense, or the mask of zeros, hides gradients that its twin or dense parent still has.",
        advice="Add `transfer` from that run to the benchmark's attacks.",
        run=m9,
    ),
    Check(
        id="M10",
        title="eps = 0 changes nothing",
        source=CARLINI,
        rule="at eps = 0 every attack returns the clean images, and the verdicts are the stored clean ones, exactly",
        meaning="The pipeline judges other images, or another network, than it says.",
        advice="Find the difference before anything else; no number of this row holds.",
        run=m10,
        refutes=True,
    ),
    Check(
        id="M11",
        title="the attacks break an undefended network",
        source=CARLINI,
        rule="accuracy of the undefended twin <= 1 % (95 % interval) at eps, or else at 4 eps",
        meaning="The attacks are too weak for this data or this architecture, so they say nothing of the defended row.",
        advice="Raise steps, restarts, or the threat's eps.",
        run=m11,
    ),
    Check(
        id="M12",
        title="the certificate is not blind",
        source=CARLINI,
        rule="copies of this network with logits x 1000 are broken as far as the network, within 3 points or tau; one "
        "behind a staircase is broken or its vanished gradient seen",
        meaning="The certificate would not notice a masked version of this very network.",
        advice="Do not rely on a pass of the other checks for this row.",
        run=m12,
    ),
    Check(
        id="M13",
        title="the number is the worst case",
        source=CARLINI,
        rule="the row's worst case over its own attacks <= the worst case with all checks' adversarials + tau",
        meaning="The row's number is too high: the checks broke images that the benchmark's attacks left.",
        advice="`worst` counts what was found on the checks' images; add the named attacks to judge all images.",
        run=m13,
        refutes=True,
    ),
)
