"""Check A1: do activations that are put to zero, or to a common value, mislead the white box?"""

from __future__ import annotations

import math

import torch

from attacks.apgd import APGD
from attacks.iterate import random_start
from attacks.smoothed import PASSES
from attacks.sparsifying import OtherBackward, innermost, sparsifiers
from robustbench_sparse.certificate.checks.outputs import smaller_of
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.subject import Subject

PROBED = 8  # images that the network's inside is looked at with
PARTS = 20  # names that are listed


def sparse_activations_hide_nothing(s: Subject) -> Finding:
    """Modules that sparsify."""
    rows = s.correct_rows
    if len(rows) == 0:
        return skipped("no image is classified right")
    if not 0 < s.threat.eps < math.inf:
        return skipped("the ball has no radius, or none that ends")
    few = rows[:PROBED]
    streams = s.random("a1/parts", few)
    found = sparsifiers(s.network, random_start(s.x[few], s.threat, streams), streams, s.eot)
    parts = innermost(frozenset().union(*found))
    if not parts:
        return skipped("no module sparsifies: gradients are those of the values, and the white box is enough")
    white = s.white.correct[rows]
    correct = white.clone()
    measured: dict[str, Value] = {"parts": sorted(parts)[:PARTS], "white_acc": white.mean().item()}
    climb = APGD(steps=s.budget.steps, loss="margin", eot=s.eot)
    targeted = APGD(steps=s.budget.steps, loss="dlr_targeted", targets=s.budget.targets, eot=s.eot)
    climbs = [(climb, *backward) for backward in PASSES]
    climbs += [(targeted, *PASSES[0])] if s.classes >= 4 else []
    for attack, slope, width in climbs:
        standing = (correct > 0).nonzero().flatten()
        if len(standing) == 0:
            break
        surrogate = OtherBackward(s.network, parts, slope, width)
        name = (f"{slope}_{width:g}" if width else slope) + ("_targeted" if attack is targeted else "")
        new = s.attack(attack, f"a1/{name}", rows=rows[standing], on=surrogate).correct
        after = correct.clone()
        after[standing] = torch.minimum(new, correct[standing])
        measured[f"after_{name}_acc"] = after.mean().item()
        correct = smaller_of(s, correct, after)
    measured["adaptive_acc"] = correct.mean().item()
    done = (
        f"APGD on the margin, {climb.steps} steps, with another backward pass through {len(parts)} modules that "
        f"sparsify: secant slopes of two widths, the identity, and secant slopes on the targeted DLR loss; on the "
        f"{len(rows)} images classified right"
    )
    return ruled(not s.exceeds(white, correct), done, measured)


SPARSE_ACTIVATIONS_HIDE_NOTHING = Check(
    id="A1",
    title="sparse activations hide nothing",
    source="BPDA: Athalye et al. 2018; MeanSparse: Amini et al. 2024, and its re-evaluation by APGD with BPDA",
    rule="where a module's output has exact zeros or repeated values that its input has not, and jumps, the white box "
    "with softened slopes there, and with the identity, leaves an accuracy at most tau below the white box's",
    meaning="Such a module's gradient says nothing of the jumps beside the point: the white box was misled, and so is "
    "AutoAttack. Zeros that come continuously, as a ReLU's, are honest and looked at by no further attack.",
    advice="Report the accuracy under `smoothed`.",
    run=sparse_activations_hide_nothing,
    refutes=True,
)


CHECKS: tuple[Check, ...] = (SPARSE_ACTIVATIONS_HIDE_NOTHING,)
