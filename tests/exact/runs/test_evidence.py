"""What failed checks come to: every rule of the weighing, on records written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from robustbench_sparse.certificate.checks import CHECKS
from robustbench_sparse.runs.certificate_record import Certificate, chosen_places
from robustbench_sparse.runs.evidence import (
    BELIEVABLE,
    CORRECTED,
    DOUBTFUL,
    MENDED,
    MISSED,
    NUMBER,
    REFUTED,
    VERDICTS,
    WEAKER,
    weigh,
    worst_verdict,
)


def failed(name: str, refutes: bool = False, status: str = "failed", **measured: float) -> dict[str, Any]:
    return {"id": name, "title": name, "status": status, "refutes": refutes, "measured": measured}


def number(reported: float, worst: float, lowered: bool, **more: float) -> dict[str, Any]:
    status = "failed" if lowered else "passed"
    return failed("M13", True, status, reported_acc=reported, worst_acc=worst, **more)


V1 = failed("V1", True, after_pre_activation_acc=0.4, after_float64_acc=0.38)


def test_without_failures_a_row_is_believable() -> None:
    assert weigh([]).verdict == BELIEVABLE
    assert weigh([failed("V1", status=s) for s in ("passed", "reported", "skipped")]).verdict == BELIEVABLE


def test_the_white_boxs_own_adversarials_correct_a_number() -> None:
    """Only the number itself fails: every other check found the certificate's attacks to be sound."""
    e = weigh([number(0.6, 0.4, True), failed("M7", status="passed", black_acc=0.5)])
    assert (e.verdict, e.answered, e.doubts) == (CORRECTED, ("M13",), [])
    assert (e.reported, e.worst, e.lowered) == (0.6, 0.4, True)


def test_a_mended_white_box_answers_its_own_check() -> None:
    e = weigh([V1, number(0.6, 0.38, True)])
    assert (e.verdict, set(e.answered)) == (CORRECTED, {"V1", "M13"})
    # The number does not count all of what the check found: three points are allowed.
    assert weigh([V1, number(0.6, 0.40, True)]).verdict == CORRECTED
    e = weigh([V1, number(0.6, 0.42, True)])
    assert (e.verdict, e.answered) == (REFUTED, ())
    # Not lowered by more than chance: there is no correction that could answer.
    assert weigh([V1, number(0.39, 0.38, False)]).verdict == REFUTED


def test_a_check_of_right_images_alone_speaks_of_all() -> None:
    """Half of all images are right: 60 % of those left are 30 % of all."""
    t2 = failed("T2", True, es_acc=0.8, bpda_acc=0.6)
    assert weigh([t2, number(0.45, 0.32, True, clean_acc=0.5)]).verdict == CORRECTED
    assert weigh([t2, number(0.45, 0.40, True, clean_acc=0.5)]).verdict == REFUTED
    assert (
        weigh([t2, number(0.45, 0.32, True)]).verdict == REFUTED
    )  # an earlier certificate, which does not say


def test_a_weaker_attack_that_wins_is_answered_by_a_mended_one_alone() -> None:
    m7 = failed("M7", black_acc=0.45)
    assert weigh([m7, number(0.6, 0.4, True)]).verdict == REFUTED  # nobody knows what hides the rest
    assert weigh([m7, V1, number(0.6, 0.38, True)]).verdict == CORRECTED
    ahead = failed("M7", black_acc=0.3)
    e = weigh([ahead, V1, number(0.6, 0.3, True)])  # the black box is still ahead
    assert (e.verdict, [c["id"] for c in e.doubts]) == (REFUTED, ["M7", "M13"])


def test_symptoms_are_answered_only_where_nothing_is_left() -> None:
    symptoms = [failed("M3"), failed("G2"), failed("T1"), failed("V2", accs=0.01)]
    assert weigh([*symptoms, number(0.9, 0.2, True)]).verdict == REFUTED
    assert weigh([*symptoms, number(0.2, 0.2, False)]).verdict == DOUBTFUL
    assert weigh([*symptoms, number(0.9, 0.03, True)]).verdict == CORRECTED
    assert weigh([*symptoms, number(0.02, 0.02, False)]).verdict == BELIEVABLE
    assert weigh(symptoms).verdict == DOUBTFUL  # nothing says how many are left


def test_what_was_lowered_to_the_floor_by_the_checks_may_reach_it_by_chance() -> None:
    """7 of 128 images: their interval starts at 2.7 %; that of 8 at 3.2 %."""
    for left, lowered, verdict in ((7, True, CORRECTED), (8, True, REFUTED), (7, False, DOUBTFUL)):
        e = weigh([failed("M3"), number(0.9 if lowered else left / 128, left / 128, lowered)], 128)
        assert (e.verdict, e.nothing_left) == (verdict, verdict == CORRECTED)


def test_what_no_adversarial_answers_stays() -> None:
    for name, refutes, verdict in (("R2", False, DOUBTFUL), ("S1", True, REFUTED), ("B3", True, REFUTED)):
        e = weigh([failed(name, refutes), number(0.9, 0.0, True)])
        assert (e.verdict, e.answered, [c["id"] for c in e.doubts]) == (verdict, ("M13",), [name])
    # The number was put right, and something else is in doubt.
    assert weigh([V1, failed("R2"), number(0.6, 0.38, True)]).verdict == DOUBTFUL


def test_a_check_that_broke_off_leaves_a_doubt_and_no_more() -> None:
    for name, refutes in (("V1", True), ("M7", False)):
        crash = failed(name, refutes, "error")
        assert weigh([crash]).verdict == DOUBTFUL
        assert weigh([crash, number(0.9, 0.0, True)]).verdict == DOUBTFUL
    assert weigh([failed("M13", True, "error"), failed("M3")]).verdict == DOUBTFUL
    assert weigh([failed("V1", True, "no such status")]).verdict == DOUBTFUL


@pytest.mark.parametrize("damage", [{}, {"reported_acc": 0.5}, {"reported_acc": 0.5, "worst_acc": "low"}])
def test_a_number_that_was_not_compared_answers_nothing(damage: dict[str, Any]) -> None:
    record = {**failed("M13", True), "measured": damage}
    assert weigh([record, failed("M3")]).verdict == REFUTED


def test_the_order_of_verdicts() -> None:
    assert VERDICTS == (BELIEVABLE, CORRECTED, "partly checked", "not checked", DOUBTFUL, REFUTED)
    assert worst_verdict([CORRECTED, BELIEVABLE, DOUBTFUL]) == DOUBTFUL
    assert worst_verdict([]) == "not checked"


def test_the_checks_that_are_weighed_exist_and_measure_what_is_read() -> None:
    assert set(CHECKS) >= MISSED
    assert {NUMBER, *MENDED, *WEAKER} <= MISSED
    refuting = {c.id for c in CHECKS.values() if c.refutes}
    assert {"V1", "T2", "I2", "M13"} <= refuting & MISSED
    assert not MISSED & {"M10", "R1", "R2", "R4", "B3", "B4", "B5", "S1", "S2", "H1"}


def test_which_images_were_examined() -> None:
    index = [10, 20, 30, 40]
    assert Certificate(found={}, n=2, images=(40, 20)).examined(index) == [1, 3]
    old = Certificate(found={}, n=2).examined(index)
    assert old == chosen_places(4, 2)
    assert len(old) == 2
    assert chosen_places(3, 5) == [0, 1, 2]
