"""What a test says: this network is as robust, and as sparse, as it should be; nothing of that table has fallen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.foundation.ranking import holm
from robustbench_sparse.testing import references, session
from robustbench_sparse.testing.deciding import LEVEL, Decision, over_seeds, paired
from robustbench_sparse.testing.measuring import CLEAN, WORST, Attack, judged, of_benchmark
from robustbench_sparse.testing.references import NotComparable, Row
from robustbench_sparse.testing.zeros import KINDS, zeros_of

Model = str | Path | nn.Module


def assert_robust(
    model: Model | Sequence[Model],
    data: Any,
    attack: Attack | Sequence[Attack],
    eps: float,
    *,
    at_least: float | None = None,
    reference: str | Path | None = None,
    row: str | None = None,
    across_seeds: bool = False,
    norm: str = "linf",
    seed: int = 0,
    level: float = LEVEL,
    **more: Any,
) -> None:
    """Fail unless a network withstands attacks on enough images, or on as many as a reference did.

    Args:
        model: a network (images in [0, 1], (B, C, H, W), to logits (B, K)), or what names one: ``zoo:NAME``, a run's
            folder, ``package.module:factory``. Several, where they are retrainings of one: then their mean counts.
        data: images and labels: a pair of arrays or tensors or a ``TensorDataset``; or the name or config entry of a
            data set.
        attack: a suite (``standard``), an attack (``pgd``), its config entry (``{"name": "pgd", "steps": 20}``), or a
            list of attacks; an image counts where none of them broke it.
        eps, norm: the threat, pixels in [0, 1].
        at_least: percent of the images, in (1, 100]; the share on these images has to reach it.
        reference: a JSON file. Its row has the verdict on every image, and the test is paired, see ``deciding.paired``.
            ``pytest --rbs-update ROW`` writes it.
        row: the row's name; the test's by default.
        across_seeds: the network was trained anew: compare within the spread of the reference's networks, at least
            three; see ``deciding.over_seeds``.
        seed: of the evaluation; the reference's.
        level: of a false alarm, one-sided.
        more: further arguments of ``evaluate``, such as ``limit``, ``certificate``, ``weights``.

    Raises:
        AssertionError: too few images, or fewer than the reference by more than chance.
        NotComparable: the reference lacks the row, or has it of other images, another protocol or another seed.
        UserError: what ``evaluate`` raises; arguments that do not fit.
    """
    __tracebackhide__ = True
    if at_least is None and reference is None:
        raise UserError("assert_robust: expected at_least=PERCENT or reference='FILE.json', got none of them")
    if at_least is not None and not 1 < at_least <= 100:
        raise UserError(f"at_least: expected percent in (1, 100], got {at_least!r}")
    _check_level(level)
    name = session.row_of(row)
    if name is None and reference is not None:
        raise UserError("row: expected the name of the reference's row (in pytest it is the test's)")
    models = [model] if isinstance(model, str | Path | nn.Module) else list(model)
    if not models:
        raise UserError("model: expected a network, or several, got none")
    found = judged(models, data, attack, eps=eps, norm=norm, seed=seed, **more)
    said = f"{found.threat['norm']}, eps {eps:g}, {', '.join(found.attacks)}, protocol {found.protocol}"
    if at_least is not None:
        _hold_minimum(name or "assert_robust", found, at_least, said)
    if reference is not None:
        _hold_reference(Path(reference), {str(name): found}, across_seeds=across_seeds, level=level)


def _hold_minimum(name: str, found: Row, at_least: float, said: str) -> None:
    __tracebackhide__ = True
    n = len(found.networks[0].verdicts) - found.networks[0].verdicts.count("-")
    low, high = (100 * share for share in wilson(found.percent / 100 * n, n))
    rate = f"{found.percent:.1f} % of {n} images withstand [{low:.1f}, {high:.1f}]"
    text = f"{rate}, at least {at_least:g} % asked for ({said})"
    fell = found.percent < at_least
    session.tell(
        row=name, measured=found.percent, wanted=at_least, n=n, outcome="fell" if fell else "held", text=text
    )
    if fell:
        raise AssertionError(f"{name}: {text}")


def assert_no_regression(
    results: str | Path,
    reference: str | Path,
    *,
    columns: Sequence[str] = (CLEAN, WORST),
    only: Sequence[str] = (),
    across_seeds: bool = False,
    level: float = LEVEL,
) -> None:
    """Fail where a benchmark's table is worse than a reference of it.

    Args:
        results: ``results/<benchmark>``.
        reference: a JSON file, whose rows ``RUN/COLUMN`` have the verdicts of every seed on every image; each is
            compared with the same seed's (one-sided McNemar), by Holm's procedure over all of them, so that a table
            of many rows raises no more false alarms than a single one. ``pytest --rbs-update 'RUN/*'`` writes rows.
            Or a leaderboard as CSV, compared as by the command ``check``.
        columns: of a JSON reference: ``clean``, ``worst`` or attacks' labels.
        only: runs; all that the reference has by default.
        across_seeds: the seeds are others than the reference's: compare each run's within the spread of the
            reference's, at least three. Of a CSV, within that of its ``spread.csv``.
        level: of any false alarm, one-sided; of a JSON reference.

    Raises:
        AssertionError: some number has fallen; it names them all.
        NotComparable: a row is gone, or of other images or another protocol.
        UserError: no benchmark, a damaged file, or arguments that do not fit.
    """
    __tracebackhide__ = True
    _check_level(level)
    folder, path = Path(results), Path(reference)
    if path.suffix == ".csv":
        _hold_table(folder, path, only, across_seeds=across_seeds)
        return
    found = of_benchmark(folder, columns)
    renewed = [name for name in found if session.is_renewed(name)]
    wanted = [n for n in references.read(path) if n.rpartition("/")[2] in columns]
    wanted = [n for n in dict.fromkeys([*wanted, *renewed]) if not only or n.rpartition("/")[0] in only]
    if not wanted:
        raise NotComparable(
            f"{path}: no row of {folder}; pytest --rbs-update 'RUN/*' writes those of a run: {', '.join(found)}"
        )
    gone = [name for name in wanted if name not in found]
    if gone:
        raise NotComparable(f"{folder}: the row {gone[0]!r} of {path} is gone")
    _hold_reference(path, {n: found[n] for n in wanted}, across_seeds=across_seeds, level=level)


def assert_sparse(
    model: Model, at_least: float, *, kind: str = "weight", weights: str | Path | None = None
) -> None:
    """Fail unless enough of a network is zero, counted in its weights as they are.

    Args:
        model: as of ``assert_robust``; masks of ``torch.nn.utils.prune`` count as the zeros that they make.
        at_least: percent, in [0, 100]; a tenth of a point less passes.
        kind: ``weight`` (single weights of convolutions and linear layers), ``linear``, ``channel``, ``kernel`` or
            ``row``.
        weights: of a factory's network.

    Raises:
        AssertionError: fewer are zero.
        UserError: no such kind, or a network that has none.
    """
    __tracebackhide__ = True
    if kind not in KINDS:
        raise UserError(f"kind: expected {', '.join(KINDS)}, got {kind!r}")
    if not 0 <= at_least <= 100:
        raise UserError(f"at_least: expected percent in [0, 100], got {at_least!r}")
    share, where = zeros_of(model, kind, weights)
    text = f"{share:.2f} % of the {kind}s are zero, at least {at_least:g} % asked for; fewest in {where}"
    fell = share < at_least - 0.1 - 1e-9  # points that a claim may be off, as everywhere
    name = session.row_of(None) or "assert_sparse"
    session.tell(
        row=name, measured=share, wanted=at_least, n=None, outcome="fell" if fell else "held", text=text
    )
    if fell:
        raise AssertionError(text)


def _check_level(level: float) -> None:
    if not 0 < level < 0.5:
        raise UserError(f"level: expected a number in (0, 0.5), got {level!r}")


def _hold_reference(path: Path, found: Mapping[str, Row], *, across_seeds: bool, level: float) -> None:
    """Compare rows with those of a reference, or rewrite the ones that were named; then the test fails, too."""
    __tracebackhide__ = True
    renewed = {name: row for name, row in found.items() if session.is_renewed(name)}
    if renewed:
        references.write(path, renewed)
        count = f"{len(renewed)} row{'s' * (len(renewed) != 1)}"
        text = f"{path}: {count} rewritten: {', '.join(renewed)}"
        for name, row in renewed.items():
            session.tell(row=name, measured=row.percent, outcome="rewritten", text=text, renewed=str(path))
        raise AssertionError(f"{text}; look at the change, commit it, and run again without --rbs-update")
    known = references.read(path)
    decisions: list[tuple[str, Decision]] = []
    comparisons = sum(1 if across_seeds else len(row.networks) for row in found.values())
    for name, row in found.items():
        try:
            old = references.find(path, known, name)
            references.check_comparable(path, name, old, row)
            where, each = (
                f"{path}: row {name!r}",
                level / comparisons,
            )  # what each may take of the level of all
            decisions += _decided(where, name, old, row, across_seeds=across_seeds, level=each)
        except NotComparable as e:
            session.tell(row=name, measured=row.percent, outcome="broken", text=str(e))
            raise
    fell = _fallen([d for _, d in decisions], level)
    lines = []
    for (name, d), has_fallen in zip(decisions, fell, strict=True):
        text = _text(d)
        # Holm's procedure sees at least what each comparison sees at its part of the level.
        outcome = "fell" if has_fallen else "held" if d.outcome == "fell" else d.outcome
        facts = {
            "p": None if math.isnan(d.p) else d.p,
            "smallest": None if math.isnan(d.smallest) else d.smallest,
        }
        session.tell(
            row=name, measured=d.measured, wanted=d.reference, n=d.n, outcome=outcome, text=text, **facts
        )
        lines += [f"{name}: {text}"] * has_fallen
    if lines:
        raise AssertionError("\n".join(["fell below the reference:", *lines]))


def _decided(
    where: str, name: str, old: Row, new: Row, *, across_seeds: bool, level: float
) -> list[tuple[str, Decision]]:
    """The comparisons of a row: one for every pair of networks with the same seed, or one across the seeds."""
    try:
        if across_seeds:
            bits = [[n.verdicts for n in row.networks] for row in (old, new)]
            return [(name, over_seeds(bits[0], bits[1], level))]
        seeds = [[n.seed for n in row.networks] for row in (old, new)]
        if seeds[0] != seeds[1]:
            raise NotComparable(
                f"{where}: of seeds {seeds[0]}, measured {seeds[1]}: across_seeds=True compares within their spread"
            )
        pairs = list(zip(old.networks, new.networks, strict=True))
        titles = [f"{name} (seed {a.seed})" if len(pairs) > 1 else name for a, _ in pairs]
        return [(t, paired(a.verdicts, b.verdicts, level)) for t, (a, b) in zip(titles, pairs, strict=True)]
    except ValueError as e:
        raise NotComparable(f"{where}: {e}") from None


def _fallen(decisions: Sequence[Decision], level: float) -> list[bool]:
    """Which numbers fell, by Holm's procedure over all that have a p."""
    tests = [i for i, d in enumerate(decisions) if not math.isnan(d.p)]
    out = [d.outcome == "fell" for d in decisions]
    for i, p in zip(tests, holm([decisions[i].p for i in tests]), strict=True):
        out[i] = bool(p < level)
    return out


def _text(d: Decision) -> str:
    smallest = (
        "no drop can be seen on so few images"
        if math.isnan(d.smallest)
        else f"smallest drop that would be seen {d.smallest:.1f} points"
    )
    return f"{d.measured:.1f} % of {d.n} images, the reference {d.reference:.1f} %: {d.how}; {smallest}"


def _hold_table(folder: Path, path: Path, only: Sequence[str], *, across_seeds: bool) -> None:
    """Compare with a leaderboard as CSV, as ``check`` does."""
    __tracebackhide__ = True
    from robustbench_sparse.reporting import reference, spread

    found = reference.check(folder, path, spread=spread.beside(path, seeds=across_seeds))
    found = [d for d in found if not only or d.run.partition(" (seed")[0] in only]
    for d in found:
        session.tell(
            row=f"{d.run}/{d.column}", measured=d.measured, wanted=d.reference, outcome=d.kind, text=d.problem
        )
    broken = [d for d in found if d.kind == "broken"]
    if broken:
        raise NotComparable(f"{folder}: {broken[0].run}: {broken[0].column} {broken[0].problem}")
    if any(d.kind == "fell" for d in found):
        raise AssertionError("\n" + reference.text_of(found))
