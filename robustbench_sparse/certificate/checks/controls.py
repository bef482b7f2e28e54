"""Checks M10 to M13, the controls: would the attacks, the pipeline and the certificate itself show what is wrong?

Carlini et al. 2019, "On Evaluating Adversarial Robustness" (https://arxiv.org/abs/1902.06705).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks import Threat
from attacks.losses import margin
from robustbench_sparse.certificate.checks.masking import CARLINI
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.probes.surrogates import Scaled
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.foundation.intervals import wilson

BROKEN = 0.01  # M11: the accuracy at which a network counts as broken


def zero_eps_changes_nothing(s: Subject) -> Finding:
    """No perturbation, no effect."""
    plans = [plan for plan in s.context.plans if not plan.attack.own_set and plan.attack.bounded]
    if not plans:
        return skipped("the benchmark has no attack that stays in a ball")
    changed: list[str] = []
    # Noise that does not come from the streams handed to the network is other noise each time: then the draws' shares
    # are compared as shares are, and no more.
    own_noise = s.stochastic and not torch.equal(s.judged(s.x, "clean"), s.clean)
    for plan in plans:
        threat = Threat(norm=plan.threat.norm, eps=0.0)
        same = plan.attack(s.model, s.x, s.y, threat, s.random(f"m10/{plan.label}"))
        correct = s.judged(same, "clean")  # the same draws as the clean verdict's
        as_before = (
            not (s.exceeds(correct, s.clean) or s.exceeds(s.clean, correct))
            if own_noise
            else torch.equal(correct, s.clean)
        )
        if not (torch.equal(same, s.x) and as_before):
            changed.append(plan.label)
    clean = s.context.outcomes.get("clean")
    if clean is not None and not s.stochastic:
        stored = torch.tensor(clean.set_index("index").loc[s.index.tolist(), "correct"].to_numpy())
        if not torch.equal(stored.to(s.clean), s.clean):
            changed.append("clean")
    done = f"{len(plans)} attacks with eps = 0, and the stored clean verdicts, on {len(s)} images"
    return ruled(not changed, done, {"clean_acc": s.clean.mean().item(), "changed": changed})


ZERO_EPS_CHANGES_NOTHING = Check(
    id="M10",
    title="eps = 0 changes nothing",
    source=CARLINI,
    rule="at eps = 0 every attack returns the clean images exactly, and the verdicts are the stored clean ones: "
    "exactly, or within the paired 95 % interval where the network draws noise of its own that cannot be repeated",
    meaning="The pipeline judges other images, or another network, than it says.",
    advice="Find the difference before anything else; no number of this row holds.",
    run=zero_eps_changes_nothing,
    refutes=True,
)


def undefended_twin_breaks(s: Subject) -> Finding:
    """The same attacks against the undefended twin."""
    if s.context.twin is None and not s.context.undefended:
        return skipped("the benchmark has no undefended run of this architecture")
    name, network = s.context.twin or ("this network, which is undefended", s.model)
    twin = s.beside(network)
    twin.check = "M11"
    at_eps = twin.strongest("m11")
    low, _ = wilson(at_eps.correct.sum().item(), len(s))
    measured: dict[str, Value] = {"acc_at_eps": at_eps.accuracy}
    broken = low <= BROKEN
    if not broken:
        wide = Threat(norm=s.threat.norm, eps=4 * s.threat.eps)
        at_wide = twin.strongest("m11/wide", threat=wide)
        low, _ = wilson(at_wide.correct.sum().item(), len(s))
        measured["acc_at_4_eps"] = at_wide.accuracy
        broken = low <= BROKEN
    return ruled(broken, f"the white-box attacks against {name} on {len(s)} images", measured)


UNDEFENDED_TWIN_BREAKS = Check(
    id="M11",
    title="the attacks break an undefended network",
    source=CARLINI,
    rule="accuracy of the undefended twin <= 1 % (95 % interval) at eps, or else at 4 eps",
    meaning="The attacks are too weak for this data or this architecture, so they say nothing of the defended row.",
    advice="Raise steps, restarts, or the threat's eps.",
    run=undefended_twin_breaks,
)


def certificate_is_not_blind(s: Subject) -> Finding:
    """The certificate against copies of this network that are broken on purpose."""
    rows = s.few
    if len(rows) == 0:
        return skipped("no image is classified right")
    s.require_gradient()
    plain = s.walked.correct[rows]  # the same attacks on the network as it is
    scaled = s.strongest("m12/scaled", rows=rows, on=Scaled(s.network, 1000.0))
    # A scaled loss must be overcome. A gradient that is zero cannot be climbed: it must be seen, as G1 does, and only
    # one that is not seen must be.
    seen = _gradient_vanishes(_Hidden(s.model), s, rows)
    accuracy = plain.mean().item()
    measured: dict[str, Value] = {
        "acc": accuracy,
        "acc_logits_x_1000": scaled.accuracy,
        "staircase_seen": seen,
    }
    allowed = max(0.03, s.tau(scaled.correct, plain))
    passes = scaled.accuracy - accuracy <= allowed
    if not seen:
        hidden = s.strongest("m12/hidden", rows=rows, on=_Hidden(s.model))
        measured["acc_behind_a_staircase"] = hidden.accuracy
        passes = passes and hidden.accuracy - accuracy <= allowed
    done = (
        f"the white-box attacks against this network's logits x 1000, and its gradient behind a staircase, on "
        f"{len(rows)} images"
    )
    return ruled(passes, done, measured)


CERTIFICATE_IS_NOT_BLIND = Check(
    id="M12",
    title="the certificate is not blind",
    source=CARLINI,
    rule="copies of this network with logits x 1000 are broken as far as the network, within 3 points or tau; one "
    "behind a staircase has its vanished gradient seen, or is broken",
    meaning="The certificate would not notice a masked version of this very network.",
    advice="Do not rely on a pass of the other checks for this row.",
    run=certificate_is_not_blind,
)


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


def number_is_worst_case(s: Subject) -> Finding:
    """The row's number against the worst of everything, the checks' adversarials included."""
    if not s.context.outcomes:
        return skipped("the row has no outcomes of its own")
    reported, rows = s.reported, s.found.rows
    worst, candidate = reported.clone(), s.found.candidate
    if len(rows):
        draws = max(100, s.draws)
        again = s.found.correct[
            rows
        ]  # as it was found: what remembers its queries would answer otherwise by now
        if s.stochastic:
            again = s.judged(
                candidate[rows], "m13", rows, draws
            )  # fresh draws: the best of many flatters itself
            s.found.correct[rows] = again
        worst[rows] = torch.minimum(worst[rows], again)
    lower = ((reported - worst) > 0.5).nonzero().flatten()
    by: dict[str, int] = {}
    for i in lower.tolist():
        by[s.found.by[i]] = by.get(s.found.by[i], 0) + 1
    done = f"the smallest verdict of the benchmark's attacks and of all checks on {len(s)} images"
    measured: dict[str, Value] = {
        "clean_acc": s.clean.mean().item(),
        "reported_acc": reported.mean().item(),
        "worst_acc": worst.mean().item(),
        "tau": s.tau(reported, worst),
        "newly_broken": len(lower),
        "by": [f"{k}: {v}" for k, v in sorted(by.items(), key=lambda item: -item[1])],
    }
    return ruled(not s.exceeds(reported, worst), done, measured)


NUMBER_IS_WORST_CASE = Check(
    id="M13",
    title="the number is the worst case",
    source=CARLINI,
    rule="the row's worst case over its own attacks <= the worst case with all checks' adversarials + tau",
    meaning="The row's number is too high: the checks broke images that the benchmark's attacks left.",
    advice="`worst` counts what was found on the checks' images; add the named attacks to judge all images.",
    run=number_is_worst_case,
    refutes=True,
)


CHECKS: tuple[Check, ...] = (
    ZERO_EPS_CHANGES_NOTHING,
    UNDEFENDED_TWIN_BREAKS,
    CERTIFICATE_IS_NOT_BLIND,
    NUMBER_IS_WORST_CASE,
)
