"""Accuracy against the radius, from the distances that one minimum-norm attack found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.reporting.plots import new_figure, save
from robustbench_sparse.reporting.render import from_rows, to_text
from robustbench_sparse.runs import names
from robustbench_sparse.runs.manifest import check_run_folder, read_manifest
from robustbench_sparse.runs.outcomes import check_classifies, counted_as_wrong, reach_of, verdicts

POINTS = 21


def curve(run_folder: Path, attack: str, eps: Sequence[float] | None = None) -> pd.DataFrame:
    """Accuracy at any radius, counted from one outcome of an attack that seeks the smallest perturbation.

    At every radius an image counts as in the table: with the share of draws that are right (one draw, unless the
    network is random) on the attack's candidate, as it was returned where that lies inside and fools, else as it was
    judged where that lies inside, else on the clean image. At the radius of the attack's threat this is its column in
    the leaderboard.

    Args:
        run_folder: ``results/<benchmark>/runs/<id>``.
        attack: the label of the attack.
        eps: radii >= 0 in units of the pixel range, in the norm that the attack was judged in; by default
            ``POINTS`` evenly spaced ones from 0 to 1.5 times the largest distance found, or to twice the radius of
            the attack's threat where no distance was found.

    Returns:
        One row per radius: ``eps``; ``accuracy``, ``lo`` and ``hi``, percent with its 95 % interval (Wilson); ``n``,
        images. The table's ``attrs`` hold ``run``, ``attack``, ``norm`` and ``eps``, the radius of the attack's
        threat.

    Raises:
        UserError: for a folder without this outcome, one that does not hold distances, or an attack that says nothing
            beyond its ball.
    """
    run = check_run_folder(run_folder)
    if eps is not None and (len(eps) == 0 or not all(e >= 0 for e in eps)):
        raise UserError(f"--eps: expected numbers >= 0, got {list(eps)!r}")
    manifest = read_manifest(run_folder.parent.parent)
    labels: list[str] = manifest["attacks"]
    if attack not in labels:
        raise UserError(
            f"--attack {attack}: no such attack{near(attack, labels)}; there are: {', '.join(labels)}"
        )
    check_classifies(run_folder, manifest)
    account = run_folder / names.account(attack)
    # Asked first: the verdicts of many attacks need not be read to say that this one has no curve.
    threat = _threat_of(read_json(account), attack) if account.is_file() else None
    found = verdicts(run_folder, manifest)
    if attack not in found.columns or threat is None:
        gaps = [gap for gap in found.gaps if attack in gap] or found.gaps
        raise UserError(f"{run_folder}: {'; '.join(gaps)}")
    table = _outcome_of(run_folder / names.verdicts(attack), threat["norm"])
    clean, distance = found.columns["clean"], table["distance"]
    finite = distance[distance < math.inf]
    if eps is None:
        farthest = 1.5 * float(finite.max()) if len(finite) else 0.0
        farthest = farthest or (2 * threat["eps"] if math.isfinite(threat["eps"]) else 1.0)
        eps = [farthest * i / (POINTS - 1) for i in range(POINTS)]
    rows, n = [], len(distance)
    for radius in eps:
        reach = reach_of(radius, threat["norm"])
        judged = clean.where((table[threat["norm"]] > reach) | (reach == 0), table["adv_correct"])
        # A distance of 0 says that the clean image fools already: its own share counts until the candidate is reached.
        returned = (distance > 0) & (distance <= reach) & (distance < math.inf)
        standing = math.fsum(judged.where(~returned, table["far_correct"]))
        low, high = wilson(standing, n)
        rates = {"accuracy": 100 * standing / n, "lo": 100 * low, "hi": 100 * high}
        rows.append({"eps": float(radius), **rates, "n": n})
    out: pd.DataFrame = pd.DataFrame(rows)
    out.attrs.update(run=run, attack=attack, **threat)
    return out


def text_of(table: pd.DataFrame) -> str:
    """The curve for people."""
    rows = [
        [f"{row['eps']:.5g}", f"{row['accuracy']:.1f}", f"{row['lo']:.1f} to {row['hi']:.1f}"]
        for row in table.to_dict("records")
    ]
    about = "Percent right at each radius eps, with its 95 % interval (Wilson), from the smallest perturbations found."
    cells = to_text(from_rows(["eps", "accuracy", "interval"], rows, texts=[]), rule=False)
    return f"{_title(table)}\n\n{about}\n\n{cells}\n"


def plot(table: pd.DataFrame, path: Path) -> None:
    """Draw a curve with its interval and the attack's own radius; the ending of ``path`` is the kind of file.

    Raises:
        UserError: without matplotlib, or for a kind of file it cannot write.
    """
    figure = new_figure(path, figsize=(6, 4))
    norm, own = {"linf": "l_inf", "l2": "l_2"}[table.attrs["norm"]], table.attrs["eps"]
    table = table[table["eps"] < math.inf].sort_values("eps")
    axes = figure.subplots()
    axes.fill_between(table["eps"], table["lo"], table["hi"], alpha=0.25, linewidth=0, label="95 % interval")
    axes.plot(table["eps"], table["accuracy"], marker=".", label="accuracy")
    if len(table) and own <= table["eps"].max():
        axes.axvline(own, color="gray", linestyle=":", label=f"the attack's eps = {own:.5g}")
    axes.set(xlabel=f"eps ({norm})", ylabel="accuracy in percent", ylim=(0, 100), title=_title(table))
    axes.set_xlim(left=0)
    axes.legend()
    save(figure, path)


def _title(table: pd.DataFrame) -> str:
    facts = table.attrs
    return f"{facts['run']}: {facts['attack']}, {facts['norm']}, n = {table['n'].iloc[0]}"


def _threat_of(about: dict[str, Any], attack: str) -> dict[str, Any]:
    """Norm and radius that an attack was judged in; UserError where its distances say nothing beyond the radius."""
    try:
        threat = about["key"]["attack"]["threat"]
        norm, radius = str(threat["norm"]), float(threat["eps"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{attack}: its outcome does not say which threat it was judged in") from None
    if about.get("bounded", True):
        raise UserError(
            f"--attack {attack}: stays inside its ball and says nothing beyond; its curve would hold at its own eps = "
            f"{radius:.5g} only. Take an attack that seeks the smallest perturbation, such as cw or fab"
        )
    if not about.get("minimum_norm", True):
        raise UserError(
            f"--attack {attack}: does not seek the smallest perturbation, so that its distances make no curve; cw and "
            "fab do"
        )
    if radius == 0:
        raise UserError(f"--attack {attack}: judged at eps = 0, where no attack looks for anything")
    return {"norm": norm, "eps": radius}


def _outcome_of(path: Path, norm: str) -> pd.DataFrame:
    """An outcome's verdicts and norms, as numbers."""
    table = pd.read_csv(path)
    counted_as_wrong(table)
    columns = ["distance", "far_correct", "adv_correct", norm]
    missing = [c for c in columns if c not in table.columns]
    if missing or table[columns].isna().any(axis=None):
        why = "distances are missing" if not missing else f"judged before {missing[0]} was kept"
        raise UserError(f"{path}: {why}; delete it to judge again")
    numbers: pd.DataFrame = table[columns].apply(pd.to_numeric, errors="coerce")
    if not (numbers >= 0).all(axis=None):
        raise UserError(f"{path}: damaged: expected numbers >= 0 in {', '.join(columns)}")
    return numbers
