"""Cells of the leaderboard: what is shown of a value, what it is sorted by. Whatever comes from a run is escaped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustbench_sparse.config.columns import PUBLISHED
from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.pages.boards import Entry
from robustbench_sparse.pages.columns import Column
from robustbench_sparse.pages.methods import division_of, fraction, structure_of
from robustbench_sparse.runs.evidence import VERDICTS

if TYPE_CHECKING:
    from markupsafe import Markup

LONG = 48  # letters from which a text is cut to the eye; all of it stays in the page


@dataclass(frozen=True)
class Cell:
    """``html`` is what is shown; ``value`` what it is sorted and downloaded by, None where there is nothing."""

    html: Markup
    value: float | str | None


def value_of(column: Column, entry: Entry, latency: float | None = None) -> float | str | None:
    """A row's plain value in a column; None where it has none."""
    made: dict[str, Callable[[], Any]] = {
        "structure": lambda: structure_of(entry.row),
        "division": lambda: division_of(entry.methods, entry.row),
        "eps": lambda: entry.eps,
        "date": lambda: entry.date,
        "latency": lambda: latency,
    }
    value = made[column.key]() if column.key in made else entry.row.get(column.key)
    return None if value is None or value == "" else value


def cell_of(column: Column, entry: Entry, latency: float | None = None) -> Cell:
    """A row's cell in a column; verdicts and links are the page's own, see ``table.html``."""
    from markupsafe import Markup

    value = value_of(column, entry, latency)
    shown = _RENDERERS.get(column.kind, _text)(column, entry, value)
    if column.kind == "verdict" and isinstance(value, str):
        value = float(VERDICTS.index(value)) if value in VERDICTS else None
    return Cell(Markup(shown), value)


def _text(column: Column, entry: Entry, value: Any) -> Markup:
    from markupsafe import Markup, escape

    if value is None:
        return Markup("")
    text = printable(value)
    if len(text) <= LONG:
        return Markup("<bdi>{}</bdi>").format(text)
    return Markup('<details class="long"><summary><bdi>{}</bdi>…</summary><bdi>{}</bdi></details>').format(
        text[: LONG - 8], escape(text)
    )


def _code(column: Column, entry: Entry, value: Any) -> Markup:
    from markupsafe import Markup

    return Markup("<code>{}</code>").format(printable(value)) if value is not None else Markup("")


def _number(column: Column, entry: Entry, value: Any) -> Markup:
    from markupsafe import Markup

    if value is None:
        return Markup("")
    return Markup(f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else f"{value:.4g}")


def _with(form: str) -> Callable[[Column, Entry, Any], Markup]:
    def render(column: Column, entry: Entry, value: Any) -> Markup:
        from markupsafe import Markup

        return Markup("" if value is None else format(value, form)) + _published(column.key, entry)

    return render


def _eps(column: Column, entry: Entry, value: Any) -> Markup:
    from markupsafe import Markup

    if value is None:
        return Markup("")
    name = {"linf": "l∞", "l2": "l2"}.get(entry.norm, entry.norm)
    return Markup("{}&nbsp;{}").format(name, fraction(value))


def _rank(column: Column, entry: Entry, value: Any) -> Markup:
    from markupsafe import Markup

    if value is None:
        return Markup("")
    high = entry.row.get(f"{column.key}_high")
    if high is None or high == value:
        return Markup("{:.0f}").format(value)
    return Markup('{:.0f} <span class="iv" title="possible ranks">{:.0f}\u2013{:.0f}</span>').format(
        value, value, high
    )


def _rate(column: Column, entry: Entry, value: Any) -> Markup:
    """A percentage, its interval in numbers and as a bar, what was published, and the images that it stands on."""
    from markupsafe import Markup

    published = _published(column.key, entry)
    if value is None:
        return published
    low, high = entry.row.get(f"{column.key}_lo", value), entry.row.get(f"{column.key}_hi", value)
    few = entry.row.get("worst_n") if column.key == "worst" else None
    note = (
        Markup(' <span class="few">of {}</span>').format(few)
        if few is not None and few != entry.row.get("n")
        else Markup("")
    )
    return Markup(
        '<span class="rate"><b>{:.1f}</b> <span class="iv">{:.1f}\u2013{:.1f}</span>{}{}'
        '<span class="bar" aria-hidden="true" style="--l:{:.1f};--w:{:.1f};--v:{:.1f}"></span></span>'
    ).format(value, low, high, note, published, low, max(high - low, 0.5), value)


def _measure(column: Column, entry: Entry, value: Any) -> Markup:
    """An error, SSIM or PSNR with its interval."""
    from markupsafe import Markup

    if value is None:
        return _published(column.key, entry)
    low, high = entry.row.get(f"{column.key}_lo", value), entry.row.get(f"{column.key}_hi", value)
    return Markup('<b>{:.4g}</b> <span class="iv">{:.4g}\u2013{:.4g}</span>').format(
        value, low, high
    ) + _published(column.key, entry)


def _published(key: str, entry: Entry) -> Markup:
    from markupsafe import Markup

    value = entry.row.get(f"{PUBLISHED}{key}")
    if value is None:
        return Markup("")
    return Markup(' <span class="pub" title="published">({:.4g})</span>').format(value)


_RENDERERS: dict[str, Callable[[Column, Entry, Any], Markup]] = {
    "code": _code,
    "number": _number,
    "percent": _with(".1f"),
    "seconds": _with(".1f"),
    "latency": _with(".3g"),
    "eps": _eps,
    "rank": _rank,
    "rate": _rate,
    "measure": _measure,
}
