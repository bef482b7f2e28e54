"""Checks U6 and U7: does what holds on the judged images hold on others, that no evaluation has shown the network?"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from attacks import PGD
from attacks.apgd import APGD
from attacks.base import SampleRandom
from robustbench_sparse.certificate.checks.substitute import TOLD_APART, substitute_of
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.probes.program import Query, used
from robustbench_sparse.certificate.probes.student import STEPS, unseen
from robustbench_sparse.certificate.probes.user import User, as_before, on_grid
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.foundation.intervals import wilson

PROJECT = "this project's"
IMAGES, FEWEST = 64, 20  # of each kind
LEVEL = 0.999  # of the intervals: so few images of two parts differ by chance, and every row is looked at
GAP = 0.15  # share of images by which robustness may be less elsewhere
FOLLOWS = 0.5  # share of images by which answers may differ after the clean one


def robustness_carries_over(s: Subject) -> Finding:
    """The same attack on judged images and on others."""
    images = s.context.images
    if images is None or images.count("train") == 0 or s.threat.eps == 0:
        return skipped("no other images are known, or no ball")
    places = unseen(s)[0][:IMAGES].sort().values
    x, y = images.gather("train", places)
    other = Subject(
        s.model,
        x.to(s.x),
        y.to(s.y),
        images.indices["train"][places],
        s.threat,
        classes=s.classes,
        seed=s.seed,
        budget=s.budget,
        stand_in=None if s.network is s.model else s.network,  # type: ignore[arg-type]
        fresh=s.fresh,
        batch_size=s.batch_size,
    )
    attack = APGD(steps=s.budget.steps, loss="margin", eot=s.eot)
    rows, others = s.correct_rows[:IMAGES], other.correct_rows
    if min(len(rows), len(others)) < FEWEST:
        return skipped(f"fewer than {FEWEST} images of a kind are classified right")
    here, there = s.attack(attack, "u6", rows=rows), other.attack(attack, "u6", rows=others)
    low, _ = wilson(here.correct.sum().item(), len(rows), LEVEL)
    _, high = wilson(there.correct.sum().item(), len(others), LEVEL)
    measured: dict[str, Value] = {"judged_acc": here.accuracy, "other_acc": there.accuracy}
    done = (
        f"APGD-{s.budget.steps} on the margin, on {len(rows)} judged images and {len(others)} of the training part, "
        "all classified right"
    )
    return ruled(low <= high or here.accuracy - there.accuracy <= GAP, done, measured)


ROBUSTNESS_CARRIES_OVER = Check(
    id="U6",
    title="the network is robust not only on the judged images",
    source=PROJECT,
    rule=f"accuracy under the same attack on other images, classified right, is less by at most {100 * GAP:g} points, "
    "or the 99.9 % intervals meet; images of the training part, on which an honest network is more robust, if anything",
    meaning="The network knows the test images, and is robust around them alone.",
    advice="Judge it on images that whoever made it cannot have had.",
    run=robustness_carries_over,
)


def asking_around_changes_nothing(s: Subject) -> Finding:
    """Images asked for the first time, and others right after their clean ones."""
    images = s.context.images
    known = images is not None and images.count("train") > 0
    if images is None or not known or s.threat.eps in (0, float("inf")) or s.stochastic:
        return skipped("no other images are known, no ball, or answers that are random")
    student = substitute_of(s)
    places = unseen(s)[0][IMAGES:]
    if student is None or len(places) < 2 * FEWEST:
        return skipped("too few other images are known, or the white box leaves none of those judged")
    x = images.gather("train", places)[0].to(s.x.device)
    with torch.no_grad():
        label = student.student(x).argmax(1)
    streams = SampleRandom.for_images(s.seed, "certificate/around", places.tolist())
    attack = PGD(steps=STEPS, loss="margin", momentum=1.0, keep="last", random_start=False)
    near = on_grid(attack(student.student, x, label, s.threat, streams), x, s.threat)
    half = len(x) // 2
    first = _answers(s, near[:half]) != label[:half]
    clean, after = _answers(s, torch.stack([x[half:], near[half:]], 1).flatten(0, 1)).view(-1, 2).unbind(1)
    turned = after != clean
    measured: dict[str, Value] = {
        "turned_when_asked_first_share": first.float().mean().item(),
        "turned_after_the_clean_one_share": turned.float().mean().item(),
    }
    done = (
        f"adversarials of the student for {half} images never shown to the network, and for {len(x) - half} others "
        "right after these were shown"
    )
    return ruled(first.float().mean().item() - turned.float().mean().item() <= FOLLOWS, done, measured)


ASKING_AROUND_CHANGES_NOTHING = Check(
    id="U7",
    title="an adversarial's effect does not depend on whether its image was asked before",
    source=PROJECT,
    rule=f"adversarials turn the prediction of at most {100 * FOLLOWS:g} points fewer images where the clean one was "
    "asked right before, by the same copy, than where nothing like it ever was",
    meaning="The network remembers its queries, in a file or in another process where no copy can be made of it. "
    + TOLD_APART,
    advice="Judge it without its memory.",
    run=asking_around_changes_nothing,
    refutes=True,
)


def _answers(s: Subject, x: Tensor) -> Tensor:
    """Predictions (B,) for images asked alone, one after another, of one copy."""
    user = User.of(s)
    with as_before(s.x.device), user.network(new=True) as network:
        each: list[Query] = [
            (network, x[i : i + 1], partial(user.streams, network, [i], "around")) for i in range(len(x))
        ]
        return torch.cat(used(each, hide=bool(s.fresh.spaces))).argmax(1)


CHECKS: tuple[Check, ...] = (
    ROBUSTNESS_CARRIES_OVER,
    ASKING_AROUND_CHANGES_NOTHING,
)
