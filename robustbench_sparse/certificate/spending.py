"""A budget of seconds: which checks it buys. Decided before the first of them runs, and kept.

No clock runs beside the checks: how far one got by some second would depend on what else the machine did, and a
certificate that is killed and goes on would hold other numbers. What a check costs is counted in passes instead, from
the budget's sizes and from how many images stand; what a pass costs is measured once for a machine and an architecture.
The same machine so makes the same choice each time, and a run's folder keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from attacks.base import Attack
from robustbench_sparse.certificate.checks.use import WAYS_ASKED, images_asked
from robustbench_sparse.certificate.probes.user import User
from robustbench_sparse.certificate.subject import Subject

ALWAYS = (
    "M13"  # the number itself: it compares what is there already, and without it nothing found would count
)
LONGEST = 200  # passes of an attack that I2 and I3 look at
EARLY = 3  # passes after which an image is fooled, where it can be
PROCESS_S, LESSONS_S = 10.0, 3.0  # a new process that imports torch; what a student learns in
WIDE = 7  # times what a pass in float32 takes, one in float64 does
EXACT = 2  # times what a pass of a stand-in takes, one of the network itself does


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a check asks of the network.

    Attributes:
        gradients: images times passes with gradients; ``answers`` without; ``alone`` one image at a time.
        seconds: beside all passes.
        needs: what several checks share, paid by the first of them; keys of ``SHARED``.
    """

    gradients: float = 0.0
    answers: float = 0.0
    alone: float = 0.0
    seconds: float = 0.0
    needs: tuple[str, ...] = ()


class Sizes:
    """The numbers that costs are counted from.

    Args:
        s: the subject. Its row's own outcomes say how many images an attack will find standing.
    """

    def __init__(self, s: Subject) -> None:
        self.s, self.b = s, s.budget
        self.n, self.right, self.few = len(s), len(s.correct_rows), len(s.few)
        self.stand = int((s.reported > 0.5).sum()) if len(s) else 0
        self.random, self.eot, self.draws = s.stochastic, s.eot, s.draws
        self.steps = self.b.steps
        self.battery = (2 + (self.b.targets if s.classes >= 4 else 0)) * self.steps
        self.query = max(1, s.eot // 4)

    @cached_property
    def user(self) -> User:
        """Asks one image at a time; what it can afford is a part of the budget, too."""
        return User.of(self.s)

    def walks(self, passes: float, rows: int | None = None, **more: Any) -> Cost:
        """Attacks of so many passes in all on images classified right; all of them, or some.

        Fooled images leave early, but those of a random network.
        """
        rows = self.right if rows is None else rows
        stand = rows if self.random else min(rows, round(rows * self.stand / max(self.right, 1)))
        gradients = self.eot * passes * stand + min(passes, EARLY) * (rows - stand)
        return Cost(gradients=gradients, answers=2 * self.draws * rows, **more)

    def own(self, wanted: Callable[[Attack], bool]) -> float:
        """Passes of the row's own attacks of a kind, one path each."""
        plans = [p.attack for p in self.s.context.plans if wanted(p.attack)]
        paths = [math.prod(max(1, int(getattr(a, k, 1))) for k in ("restarts", "eot")) for a in plans]
        return float(sum(min(a.passes // n, LONGEST) for a, n in zip(plans, paths, strict=True)))

    def asked(self) -> int:
        """Images that U4 and U5 ask about."""
        return 3 * images_asked(self.user)

    def standing(self, most: int) -> int:
        """Images that a black box is sent to: those that the white box will leave, or all of a random network."""
        return min(most, self.right if self.random else max(self.stand, 1))


def _gradient_attack(a: Attack) -> bool:
    return not (a.black_box or a.weak or a.own_set)


SHARED: dict[str, Callable[[Sizes], Cost]] = {
    "white": lambda z: z.walks(z.battery),
    "unbounded": lambda z: z.walks(25) if z.random else Cost(gradients=EARLY * 2 * z.right),
    "slope": lambda z: Cost(gradients=22 * z.eot * z.right, answers=WIDE * 24 * min(16, z.right)),
    "courses": lambda z: z.walks(EXACT * z.own(_gradient_attack), z.few),
    "student": lambda z: Cost(
        alone=max(0.4 * z.user.affordable(1.0), 200) + (z.n + 3 * z.stand) * z.user.draws,
        seconds=LESSONS_S,
        needs=("white",),
    ),
}

COSTS: dict[str, Callable[[Sizes], Cost]] = {
    "M1": lambda z: z.walks(21),
    "M2": lambda z: z.walks(7 * 20),
    "M3": lambda z: z.walks(z.steps // 4) if z.random else Cost(gradients=EARLY * 2 * z.right),
    "M4": lambda z: Cost(needs=("unbounded",)),
    "M5": lambda z: Cost(needs=("unbounded",)),
    "M6": lambda z: z.walks((2 + 2 * z.b.restarts) * z.steps),
    "M7": lambda z: Cost(
        answers=z.b.queries * z.query * (z.standing(z.n) + z.standing(z.few)), needs=("white",)
    ),
    "M8": lambda z: Cost(
        answers=z.b.random_draws * z.query * z.standing(max(z.b.few, z.n // 4)), needs=("white",)
    ),
    "M9": lambda z: Cost(
        gradients=EXACT
        * z.steps
        * z.right
        * sum(p is not None for p in (z.s.context.twin, z.s.context.parent)),
        answers=2 * z.draws * z.right,
        needs=("white",),
    ),
    "M10": lambda z: Cost(answers=z.n * z.draws * (1 + len(z.s.context.plans))),
    "M11": lambda z: Cost(gradients=2 * EXACT * EARLY * z.n, answers=3 * z.n * z.draws),
    "M12": lambda z: z.walks(z.battery, z.few, needs=("white",)),
    "M13": lambda z: Cost(answers=max(100, z.draws) * z.n if z.random else 0),
    "G1": lambda z: Cost(needs=("slope",)),
    "G2": lambda z: Cost(gradients=2 * z.eot * z.n),
    "G3": lambda z: Cost(answers=2 * z.n),
    "V1": lambda z: Cost(answers=5 * z.n),
    "V2": lambda z: z.walks(
        5 * z.steps, min(z.right, max(z.b.few, z.b.images // 2)), needs=("white", "slope")
    ),
    "V3": lambda z: Cost(
        gradients=2 * WIDE * z.eot * z.n if z.s.context.twin is not None else 0, needs=("slope",)
    ),
    "T2": lambda z: Cost(answers=20 * z.few, needs=("slope",)),
    "A1": lambda z: Cost(answers=10 * z.few),
    "R1": lambda z: Cost(answers=5 * z.n),
    "R2": lambda z: Cost(answers=5 * z.n),
    "R3": lambda z: z.walks(10 * 3.5, z.few) if z.random else Cost(),
    "R4": lambda z: Cost(answers=100 * z.n, needs=("white",)) if z.random else Cost(),
    "R5": lambda z: (
        Cost(gradients=2 * z.steps * z.few, answers=z.draws * z.few, needs=("white",)) if z.random else Cost()
    ),
    "R6": lambda z: (
        Cost(gradients=z.steps * z.few, answers=z.draws * z.few, needs=("white",)) if z.random else Cost()
    ),
    "D1": lambda z: Cost(answers=4),
    "D2": lambda z: Cost(),
    "T1": lambda z: Cost(gradients=10 * z.eot * z.few, answers=40 * z.few, needs=("white",)),
    "Z1": lambda z: Cost(
        gradients=z.eot * z.battery * z.few,
        answers=2 * z.b.inner_points * z.few * (2 if z.random else 1) + 3 * z.draws * z.few,
    ),
    "I1": lambda z: Cost(answers=61 * z.few),
    "I2": lambda z: Cost() if z.random else z.walks(EXACT * z.battery, z.few, needs=("courses",)),
    "I3": lambda z: (
        Cost() if z.random else z.walks(2 * z.own(_gradient_attack), z.few, needs=("courses", "white"))
    ),
    "I4": lambda z: Cost() if z.random or z.s.network is z.s.model else z.walks(3 * z.steps, z.few),
    "B1": lambda z: Cost(gradients=z.eot * z.n),
    "B2": lambda z: Cost(),
    "B3": lambda z: Cost(answers=3 * z.draws * z.n, seconds=PROCESS_S, needs=("white",)),
    "B4": lambda z: Cost(gradients=z.eot * z.steps * z.right, answers=2 * z.draws * z.right),
    "B5": lambda z: Cost(),
    "S1": lambda z: Cost(),
    "S2": lambda z: Cost(),
    "S3": lambda z: z.walks(2 * z.steps) if z.s.context.parent is not None else Cost(),
    "S4": lambda z: Cost(answers=2 * z.n),
    "H1": lambda z: Cost(),
    "H2": lambda z: Cost(needs=("white",)),
    "U1": lambda z: Cost(needs=("student",)),
    "U2": lambda z: Cost(alone=max(0.35 * z.user.affordable(1.0), 64 * 4 + 4 * z.user.draws)),
    "U3": lambda z: Cost(alone=40),
    "U4": lambda z: Cost(alone=100 + 4 * z.asked(), needs=("student",)),
    "U5": lambda z: Cost(alone=WAYS_ASKED * z.asked(), needs=("student",)),
    "U6": lambda z: z.walks(z.steps, 2 * min(64, z.right)),
    "U7": lambda z: Cost() if z.random else Cost(alone=3 * 64, needs=("student",)),
}

# What costs nothing comes first. Then by what checks caught for their cost in the certificates of 26 networks that are
# broken on purpose or tell an evaluation from use: a first catch counts fully, a further one of the same network less.
# What speaks of random networks alone stands where such networks need it, and costs others nothing.
TELLING = (
    "M13", "D2", "S1", "S2", "H1", "B2", "B5", "D1", "U3", "M10", "B1", "G3", "G2", "R1", "R2",
    "M3", "M5", "M4", "U4", "V1", "M1", "T2", "U2", "A1", "U5", "T1", "U1", "H2", "G1", "U7", "R6", "I3", "I1", "V3",
    "R5", "M2", "M9", "U6", "V2", "M6", "R3", "M8", "Z1", "M7", "I4", "S4", "S3", "B4", "M11", "I2", "R4", "M12", "B3",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Spending:
    """A budget, and what it buys.

    Attributes:
        budget_s: the seconds asked for.
        prices: seconds of an image in a pass with gradients, in one without, and asked alone.
        expected: check -> seconds that it is expected to take, with what it is the first to need.
        left_out: check -> seconds that it would have taken, where too few were left.
    """

    budget_s: float
    prices: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As plain values."""
        rounded = {
            k: {c: round(v, 6) for c, v in getattr(self, k).items()}
            for k in ("prices", "expected", "left_out")
        }
        return {"budget_s": self.budget_s, **rounded}


def spend(s: Subject, seconds: float, prices: Mapping[str, float], ids: Iterable[str]) -> Spending:
    """Choose checks, the most telling first, as long as there are seconds left; a cheaper one may follow a dear one.

    Args:
        s: the subject.
        seconds: the budget.
        prices: see ``Spending``.
        ids: of all checks.
    """
    sizes, have = Sizes(s), set[str]()
    expected: dict[str, float] = {}
    left_out: dict[str, float] = {}
    left = seconds
    for name in sorted(ids, key=_rank):
        parts = _parts(COSTS[name](sizes), sizes, have)
        takes = sum(_seconds(cost, prices) for cost in parts.values())
        if takes <= left or name == ALWAYS:
            expected[name] = takes
            left, have = left - takes, have | (parts.keys() - {""})
        else:
            left_out[name] = takes
    return Spending(budget_s=seconds, prices=dict(prices), expected=expected, left_out=left_out)


def _rank(name: str) -> int:
    return -1 if name == ALWAYS else TELLING.index(name)


def _parts(cost: Cost, sizes: Sizes, have: set[str]) -> dict[str, Cost]:
    """A check's own cost, under an empty name, and that of what it needs and nobody has paid for."""
    parts, todo = {"": cost}, list(cost.needs)
    while todo:
        name = todo.pop()
        if name not in have and name not in parts:
            parts[name] = SHARED[name](sizes)
            todo += parts[name].needs
    return parts


def _seconds(cost: Cost, prices: Mapping[str, float]) -> float:
    kinds = ("gradients", "answers", "alone")
    return cost.seconds + float(sum(getattr(cost, kind) * prices[kind] for kind in kinds))
