"""What failed checks come to, by their evidence: is the number wrong, put right since, or only in doubt?

Three kinds of checks are told apart. Most say that attacks miss adversarials, or that they would (``MISSED``): some
of them by an attack of their own that found more. Of these, some mend what misled the white box and let it try again
(``MENDED``), others need no gradient and should do worse than it (``WEAKER``). All other checks speak of files,
data or noise, and no adversarial answers them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_sparse.foundation.intervals import wilson

BELIEVABLE, CORRECTED, PARTLY = "believable", "corrected", "partly checked"
NOT_CHECKED = "not checked"
DOUBTFUL, REFUTED = "doubtful", "refuted"
# From the best to the worst; a row without a verdict is no better than a doubtful one.
VERDICTS = (BELIEVABLE, CORRECTED, PARTLY, NOT_CHECKED, DOUBTFUL, REFUTED)
LEFT_OUT = "left_out"  # status of a check that a budget of seconds did not reach

Record = Mapping[str, Any]
TOLERANCE = 0.03  # share of images by which a number may be off and count as right
NUMBER = "M13"  # the check that compares the row's number with the worst of everything
MISSED = {
    *(f"M{i}" for i in range(1, 10)), "M12", "M13", "G1", "G2", "G3", "V1", "V2", "V3", "R3", "R5", "R6", "D1", "D2",
    "T1", "T2", "Z1", "I1", "I2", "I3", "I4", "B1", "B2", "A1", "U1", "U2",
}  # fmt: skip
# Check -> the accuracies that its mended white box left.
MENDED = {
    "V1": ("after_pre_activation_acc", "after_float64_acc", "after_scaled_acc"),
    "V3": ("after_pre_activation_acc", "after_float64_acc", "after_scaled_acc"),
    "G1": ("bpda_acc",),
    "T2": ("es_acc", "bpda_acc"),
    "A1": ("adaptive_acc",),
}
ON_RIGHT = {"T2", "A1"}  # these look only at images that are classified right
WEAKER = {"M1": "fgsm_acc", "M7": "black_acc", "M9": "transfer_acc", "U1": "student_acc"}


@dataclass(frozen=True)
class Evidence:
    """The findings of a certificate, weighed.

    Attributes:
        failed: checks that did not pass.
        answered: those of them that say no more of the row's number, now that it counts every adversarial found.
        reported, worst: share of the examined images that stand against the row's own attacks, and against the checks'
            too; None where the two were not compared.
        lowered: the second lies below the first by more than chance.
        nothing_left: so few images stand that no attack could lower the number by more than is allowed.
        left_out: ids of checks that were not made, for want of time.
    """

    failed: tuple[Record, ...]
    answered: tuple[str, ...] = ()
    reported: float | None = None
    worst: float | None = None
    lowered: bool = False
    nothing_left: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def doubts(self) -> list[Record]:
        """Failed checks that nothing answers."""
        return [c for c in self.failed if c["id"] not in self.answered]

    @property
    def verdict(self) -> str:
        """What the findings come to.

        ``believable`` or, where the checks' adversarials lowered the number, ``corrected``: no doubt is left.
        ``partly checked``: the checks that were made leave no doubt, and others were left out for want of time.
        ``refuted``: a refuting check is not answered, or the number was lowered and another check says that there is
        more to find. Else ``doubtful``.
        """
        if not self.doubts:
            return PARTLY if self.left_out else CORRECTED if self.lowered else BELIEVABLE
        wrong = any(c["refutes"] and c["status"] == "failed" for c in self.doubts)
        more = any(c["id"] in MISSED and c["status"] == "failed" for c in self.doubts)
        return REFUTED if wrong or (self.lowered and more) else DOUBTFUL


NOTHING = Evidence(())


def failures(checks: Sequence[Record]) -> list[Record]:
    """Checks that failed or came to no end; one whose status is no status has not passed."""
    return [c for c in checks if c["status"] not in ("passed", "reported", "skipped", LEFT_OUT)]


def weigh(checks: Sequence[Record], n: int = 0) -> Evidence:
    """Weigh a certificate's findings.

    A failed check of ``MISSED`` is answered in one of two ways. Nothing is left to find: of the examined images at
    most a share of ``TOLERANCE`` stands, and no attack lowers the number by more; where the checks' adversarials
    lowered it to there, its 95 % interval may reach that. Or they lowered the number, and what the check found lies at
    most ``TOLERANCE`` below it: it is the accuracy that a mended white box left, or that of an attack that should be
    weaker, and a mended white box is as strong again. The check of the number itself is answered with all others. A
    check that broke off never is.

    Args:
        checks: their records.
        n: images examined; 0 where that is not known.
    """
    failed = tuple(failures(checks))
    unmade = tuple(str(c["id"]) for c in checks if c["status"] == LEFT_OUT)
    number = next((c for c in checks if c.get("id") == NUMBER and c["status"] in ("passed", "failed")), {})
    reported, worst, clean = (_share(number, f"{name}_acc") for name in ("reported", "worst", "clean"))
    if reported is None or worst is None:
        return Evidence(failed, left_out=unmade)
    lowered = number["status"] == "failed"
    missed = [c for c in failed if c["id"] in MISSED and c["status"] == "failed"]
    answered: list[str] = []
    left = wilson(min(worst * n, n), n)[0] if lowered and n else worst
    if left <= TOLERANCE:
        answered = [c["id"] for c in missed]
    elif lowered:
        answered = _explained(missed, worst, clean)
        if {c["id"] for c in missed} <= {*answered, NUMBER}:
            answered.append(NUMBER)
    return Evidence(failed, tuple(answered), reported, worst, lowered, left <= TOLERANCE, unmade)


def _explained(missed: Sequence[Record], worst: float, clean: float | None) -> list[str]:
    """Ids of failed checks whose accuracies a lowered number explains."""
    left: dict[str, float] = {}  # by mended white boxes, of all images
    for check in missed:
        found = [a for key in MENDED.get(check["id"], ()) if (a := _share(check, key)) is not None]
        of_all = clean if check["id"] in ON_RIGHT else 1.0
        if found and of_all is not None and worst <= min(found) * of_all + TOLERANCE:
            left[check["id"]] = min(found) * of_all
    weaker = [
        str(c["id"])
        for c in missed
        if left
        and (accuracy := _share(c, WEAKER.get(c["id"], ""))) is not None
        and min(left.values()) <= accuracy + TOLERANCE
    ]
    return [*left, *weaker]


def _share(check: Record, key: str) -> float | None:
    """A figure of a check's, where it is a share."""
    value = check.get("measured", {}).get(key)
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def worst_verdict(verdicts: Sequence[str]) -> str:
    """The least trustworthy of several rows' verdicts."""
    return max(verdicts, key=VERDICTS.index) if verdicts else NOT_CHECKED
