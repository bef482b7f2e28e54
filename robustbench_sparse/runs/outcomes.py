"""Reading a run's folder: rates and their intervals, counted from the stored verdicts of every image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from attacks.base import Norm, Threat
from robustbench_sparse.config.protocol import protocol
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import read_keys
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.foundation.paired import interval
from robustbench_sparse.runs import names
from robustbench_sparse.runs.certificate_record import Certificate, read_certificate
from robustbench_sparse.runs.challenges import Challenge, read_challenges
from robustbench_sparse.runs.evidence import BELIEVABLE, CORRECTED
from robustbench_sparse.runs.seals import Seals

# What the judge writes of an image that has a verdict; any other word is a failure.
JUDGED = ("ok", "outside_box", "outside_ball")
# Of an image that the network gives no finite logits for as it is: without a verdict, whatever is done to it.
UNDECIDED = "undecided"


def rates(run: Path, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Rate cells of one run's folder; what keeps them from being complete; and what was put right on the way."""
    found = verdicts(run, manifest)
    if "clean" not in found.columns:
        return {}, found.gaps, []
    row: dict[str, Any] = {"n": len(found.columns["clean"]), "eval_seconds": found.seconds}
    for label, correct in found.columns.items():
        row.update(_cells(label, found.counted(label, correct)))
    certificate = found.certificate
    flags = dict.fromkeys([*certificate.flags, *(c.flag for c in found.challenges)])
    row.update({"verdict": found.verdict, "flags": " ".join(flags)})
    if (
        manifest.get("certificate", "off") == "off" or certificate.checks
    ):  # else it has been judged by nothing yet
        version = certificate.version if certificate.checks else 0
        row["protocol"] = protocol(manifest, version, certificate.budget_s, certificate.own)
    if "worst" in found.columns:
        # What rows are ranked by, and the images that this stands on.
        row["_worst"], row["_stands"] = found.columns["worst"].to_numpy(), found.stands
        row["worst_n"] = len(found.counted("worst", found.columns["worst"]))
    return row, found.gaps, found.notes


@dataclass
class Verdicts:
    """What one run's folder says of every image.

    Attributes:
        columns: label -> share of draws classified right, per image, in the same order; ``clean``, every attack
            that left no gap, and ``worst`` where none did. ``worst`` counts the adversarials of the certificate's
            checks, too. An attack with ``reference: prediction`` has ``unchanged`` in its own column, and counts for
            ``worst`` like all others. Every shift that left no gap comes last, and counts for nothing else.
        index: the images' positions in the data set.
        gaps: why a column is missing.
        notes: what was put right on the way.
        certificate: whether the numbers can be believed.
        seconds: time spent judging, the certificate's included.
        stands: places of the images that ``worst`` stands on; None means all. Where the checks' adversarials lower
            the number by more than chance, those are the examined images: the others were not attacked like that, and
            a rate over all would mix the two.
        challenges: adversarials that others sent in; ``worst`` counts them, too.
        challenged: they lower the number by more than chance.
    """

    columns: dict[str, pd.Series[float]]
    index: list[int]
    gaps: list[str]
    notes: list[str]
    certificate: Certificate
    seconds: float = 0.0
    stands: list[int] | None = None
    challenges: list[Challenge] = field(default_factory=list)
    challenged: bool = False

    @property
    def verdict(self) -> str:
        """The certificate's, which others' adversarials put right as those of its checks do."""
        verdict = self.certificate.verdict
        return CORRECTED if self.challenged and verdict == BELIEVABLE else verdict

    def counted(self, label: str, correct: pd.Series[float]) -> pd.Series[float]:
        """Those of a column's verdicts that its rate is counted from."""
        return correct if label != "worst" or self.stands is None else correct.iloc[self.stands]


def check_classifies(run: Path, manifest: Mapping[str, Any]) -> None:
    """UserError for a run of another task, which has no verdicts."""
    if manifest.get("task", "classify") != "classify":
        raise UserError(f"{run}: expected a run of the task classify, got {manifest['task']}")


def verdicts(run: Path, manifest: Mapping[str, Any]) -> Verdicts:
    """Read the outcomes in a run's folder. Any attack with a gap leaves ``worst`` out: a crash is never robustness."""
    check_classifies(run, manifest)
    clean, problem, seconds = read_outcome(run, names.CLEAN, ("index", "label", "correct"), None)
    if clean is None:
        return Verdicts({}, [], [problem], [], Certificate(found={}))
    certificate = read_certificate(run, manifest)
    seconds += certificate.seconds
    found = Verdicts({"clean": clean["correct"]}, clean["index"].tolist(), [], [], certificate, seconds)
    if clean.attrs["undecided"]:
        found.notes.append(
            f"{clean.attrs['undecided']} of {len(clean)} images without a verdict (the network's logits are not finite "
            "there), counted as not classified right"
        )
    worst, some_inside = clean["correct"], False
    for label in manifest["attacks"]:
        settings = manifest["settings"].get(label)
        by_prediction = (settings or {}).get("reference") == "prediction"
        predictions = ("clean_pred", "adv_pred") if by_prediction else ()
        columns = ("index", "label", "adv_correct", "linf", "l2", "status", *predictions)
        table, problem, seconds = read_outcome(run, label, columns, settings)
        found.seconds += seconds
        if table is None:
            found.gaps.append(problem)
            continue
        if not (table["index"].equals(clean["index"]) and table["label"].equals(clean["label"])):
            found.gaps.append(f"{label}: judged on other images than clean")
            continue
        gap = gap_in(label, table, "adv_correct")
        if gap:
            found.gaps.append(gap)
            continue
        found.notes += put_right(label, table)
        found.columns[label] = unchanged(table) if by_prediction else table["adv_correct"]
        inside = inside_ball(table, manifest["threat"])
        some_inside = some_inside or bool(inside.any())
        worst = worst.mask(inside & (table["adv_correct"] < worst), table["adv_correct"])
    more = clean["index"].map(certificate.found)
    worst = worst.mask(more < worst, more)
    worst = _challenged(run, manifest, found, worst)
    if manifest["attacks"] and not found.gaps:
        if some_inside or certificate.found or found.challenges:
            found.columns["worst"] = worst
            _restrict(found, worst)
        else:
            found.gaps.append("worst: no attack's image lies in the benchmark's ball")
    if certificate.note:
        found.gaps.append(certificate.note)
    if certificate.left_out:
        found.notes.append(f"certificate: {certificate.left_out}")
    _add_shifts(run, manifest, clean, found)
    return found


def _challenged(
    run: Path, manifest: Mapping[str, Any], found: Verdicts, worst: pd.Series[float]
) -> pd.Series[float]:
    """The worst case with the adversarials that others sent in; they, and what is left out, are named."""
    found.challenges, notes = read_challenges(run, manifest, found.index)
    found.notes += notes
    if not found.challenges:
        return worst
    lowered = worst
    for challenge in found.challenges:
        more = pd.Series(found.index, index=worst.index).map(challenge.found)
        lowered = lowered.mask(more < lowered, more)
        found.notes.append(f"challenge by {challenge.author}: {challenge.broken} images broken")
    found.challenged = interval(worst.tolist(), lowered.tolist())[0] > 0
    return lowered


def _restrict(found: Verdicts, worst: pd.Series[float]) -> None:
    """Let the worst case stand on the examined images where the checks' adversarials lowered it; and say so."""
    if not found.certificate.evidence.lowered:
        return
    examined = found.certificate.examined(found.index)
    if 0 < len(examined) < len(worst):
        found.stands = examined
        found.notes.append(
            f"worst: of the {len(examined)} examined images, where the checks' adversarials lower it; with the images "
            f"that the checks did not attack it would be {100 * worst.mean():.1f}"
        )


def _add_shifts(run: Path, manifest: Mapping[str, Any], clean: pd.DataFrame, found: Verdicts) -> None:
    """Columns of the shifts: beside the worst case, never part of it."""
    for label, settings in manifest.get("shifts", {}).items():
        columns = ("index", "label", "correct", "status")
        table, gap, seconds = read_outcome(run, label, columns, settings)
        found.seconds += seconds
        if table is not None:
            same = table["index"].equals(clean["index"]) and table["label"].equals(clean["label"])
            gap = gap_in(label, table, "correct") if same else f"{label}: judged on other images than clean"
        if gap or table is None:
            found.gaps.append(gap)
        else:
            found.columns[label] = table["correct"]


def _cells(name: str, correct: pd.Series[float]) -> dict[str, float]:
    """A rate and its interval, in percent."""
    if len(correct) == 0:
        return {}
    total = math.fsum(correct)
    low, high = wilson(total, len(correct))
    return {name: 100 * total / len(correct), f"{name}_lo": 100 * low, f"{name}_hi": 100 * high}


def unchanged(table: pd.DataFrame) -> pd.Series[float]:
    """1 where an attack left the prediction as it was on the clean image, 0 where not, nan without a verdict."""
    same = (table["adv_pred"] == table["clean_pred"]).astype("float64")
    out: pd.Series[float] = same.where(table["adv_correct"].notna())
    return out


def gap_in(label: str, table: pd.DataFrame, verdict: str) -> str:
    """What keeps an attack's outcome from being complete: images without a verdict; else empty."""
    without = ~table["status"].isin((*JUDGED, UNDECIDED)) | table[verdict].isna()
    if not without.any():
        return ""
    kinds = ", ".join(sorted(set(map(str, table["status"][without]))))
    return f"{label}: no verdict on {int(without.sum())} of {len(table)} images ({kinds})"


def counted_as_wrong(table: pd.DataFrame) -> int:
    """Fill in what an outcome leaves open of images without a verdict, so that no rate counts them as withstood.

    They stay among the images, so that all rows are counted on the same ones: not classified right, at any radius.

    Args:
        table: an outcome; changed in place.

    Returns:
        How many they are.
    """
    if "status" not in table:
        return 0
    undecided = table["status"] == UNDECIDED
    if undecided.any():
        for column in ("correct", "clean_correct", "adv_correct", "distance", "far_correct"):
            if column in table:
                table.loc[undecided, column] = 0.0
    return int(undecided.sum())


def put_right(label: str, table: pd.DataFrame) -> list[str]:
    """What was put right of an attack's candidates."""
    flags = ("outside_box", "outside_ball") if table.attrs["bounded"] else ("outside_box",)
    counts = {flag: int((table["status"] == flag).sum()) for flag in flags}
    return [f"{label}: {count} {flag}, projected back" for flag, count in counts.items() if count]


def inside_ball(table: pd.DataFrame, threat: Mapping[str, Any]) -> pd.Series[bool]:
    """Which candidates the benchmark's adversary may choose."""
    ball = Threat(norm=threat["norm"], eps=float(threat["eps"]))
    return table[ball.norm] <= ball.reach


def reach_of(eps: float, norm: Norm) -> float:
    """A radius with the judge's allowance for rounding; none at 0, where only the clean image counts."""
    return 0.0 if eps == 0 else Threat(norm=norm, eps=eps).reach


def read_outcome(
    run: Path,
    label: str,
    columns: Sequence[str],
    settings: Mapping[str, Any] | None,
    highest: float = 1.0,
) -> tuple[pd.DataFrame | None, str, float]:
    """An outcome's table and seconds, or None and why there is none. The third column is the verdict.

    A verdict lies in [0, ``highest``].

    The table's ``attrs`` say whether the attack is ``bounded``: one that seeks the smallest perturbation is not,
    and a candidate outside the ball is no fault of it.

    An outcome of other settings than the benchmark's present ones, left from before a change, is none.
    """
    about_path, path = run / names.account(label), run / names.verdicts(label)
    seals = Seals(run)
    if not seals.has(names.account(label)):
        return None, f"incomplete: {label}", 0.0
    seals.check(names.account(label))
    keys = ("status", "reason", "n", "seconds", "key", "bounded")
    about = read_keys(about_path, keys, {"bounded": True})
    try:
        seconds = float(about["seconds"] or 0.0)
        made_by = about["key"].get("shift", about["key"].get("attack"))
        changed = settings is not None and made_by != settings
    except (AttributeError, TypeError, ValueError) as e:
        raise UserError(f"{about_path}: damaged: {one_line(e)}") from None
    if changed:
        return None, f"incomplete: {label} (its settings have changed)", 0.0
    if about["status"] != "ok":
        return None, f"{label}: {because(about)}", seconds
    seals.check(names.verdicts(label))
    try:
        table = pd.read_csv(path)
        missing = [c for c in columns if c not in table.columns]
        if missing:
            raise ValueError(f"no column {missing[0]!r}")
        undecided = counted_as_wrong(table)
        for column in columns:
            if column != "status":
                table[column] = pd.to_numeric(table[column])
        verdict = table[columns[2]]
        if len(table) != about["n"]:
            raise ValueError(f"{len(table)} images, but {about_path.name} says {about['n']}")
        if table["index"].duplicated().any():
            raise ValueError("an image stands there twice")
        if "status" in table and not pd.api.types.is_string_dtype(table["status"].dropna()):
            raise ValueError("status: expected texts")
        if not verdict.dropna().between(0, highest).all() or (label == names.CLEAN and verdict.isna().any()):
            raise ValueError(f"{columns[2]}: expected numbers in [0, {highest:g}]")
    except (OSError, ValueError, TypeError) as e:
        raise UserError(f"{path}: damaged: {one_line(e)}") from None
    table.attrs["bounded"], table.attrs["undecided"] = about["bounded"], undecided
    return table, "", seconds


def because(about: Mapping[str, Any]) -> str:
    """``status: reason`` on one line."""
    return f"{about['status']}: {one_line(about['reason'])}" if about["reason"] else str(about["status"])
