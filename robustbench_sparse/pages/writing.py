"""The report as a folder: an index, a page a run, charts, downloads, styles and scripts. Whole files only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_sparse.foundation.errors import check_installed
from robustbench_sparse.foundation.files import write_atomically, write_text
from robustbench_sparse.foundation.progress import Progress, Silent
from robustbench_sparse.pages import charts as charting
from robustbench_sparse.pages.boards import Board, Entry, boards_of
from robustbench_sparse.pages.cards import card_of, card_text
from robustbench_sparse.pages.citations import bibtex
from robustbench_sparse.pages.columns import Column, columns_of
from robustbench_sparse.pages.evidence import Known
from robustbench_sparse.pages.gallery import Images
from robustbench_sparse.pages.latency import latencies_of
from robustbench_sparse.pages.rows import FACETS, Row, rows_of, slug
from robustbench_sparse.pages.run_page import run_page
from robustbench_sparse.pages.script_data import as_script, report_data
from robustbench_sparse.pages.verdict_store import sights_of
from robustbench_sparse.reporting.memo import Memo
from robustbench_sparse.reporting.ranks import METHOD
from robustbench_sparse.reporting.tables import text_of

if TYPE_CHECKING:
    from jinja2 import Environment

INDEX, CHARTS = "index.html", "charts.html"
ASSETS = ("report.css", "report.js", "charts.js", "theme.js")
GALLERY = 8


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a report should hold.

    Attributes:
        title: stands above the page.
        known: what each check asks, for tables without certificates.
        configs: folder of benchmarks' files, see ``boards.boards_of``.
        data_root: of the data sets; None as elsewhere.
        gallery: images on a run's page at most.
        index, runs, charts: whether the leaderboard with its downloads, pages of runs, and charts are made.
        charts_linked: whether charts that were made earlier are linked, where none are made now.
        latency: whether the time of one image is measured.
        live: whether the pages ask for newer ones: served ones do.
        memo: rows that were read before; None reads all of them.
    """

    title: str = "Robust and sparse: a leaderboard"
    known: Known = field(default_factory=dict)
    configs: Path | None = None
    data_root: Path | None = None
    gallery: int = GALLERY
    index: bool = True
    runs: bool = True
    charts: bool = True
    charts_linked: bool = False
    latency: bool = False
    live: bool = False
    memo: Memo | None = None

    def has_page(self, entry: Entry, out: Path) -> bool:
        """Whether a row gets a page, or has one from earlier."""
        made = self.runs or (out / "runs" / f"{slug(entry)}.html").is_file()
        return made and entry.folder is not None


def write_report(
    places: Sequence[Path | str], out: Path, wishes: Wishes, show: Progress | None = None
) -> int:
    """Write the report into a folder; files of the same names are replaced, others stay.

    Returns:
        How many rows it has.

    Raises:
        UserError: no results, a damaged file, or the extra ``report`` is missing.
    """
    check_installed(("jinja2", *(("altair", "vl_convert") if wishes.charts else ())), "report")
    show = show or Silent()
    boards = boards_of(places, wishes.configs, wishes.memo)
    entries = [e for b in boards for e in b.entries]
    latencies, machine = latencies_of(entries, show) if wishes.latency else ({}, "")
    columns = [c for c in columns_of(boards) if c.key != "latency" or latencies]
    rows = rows_of(boards, columns, wishes.known, lambda e: wishes.has_page(e, out), latencies)
    site = Site(out=out, wishes=wishes, boards=boards, columns=columns, rows=rows, machine=machine)
    if wishes.index:
        site.write_assets()
        site.write_downloads()
        site.write_index()
    if wishes.charts:
        site.write_charts(show)
    if wishes.runs:
        site.write_runs(show)
    return len(rows)


@dataclass(frozen=True, kw_only=True)
class Site:
    """The folder and what goes into it."""

    out: Path
    wishes: Wishes
    boards: Sequence[Board]
    columns: Sequence[Column]
    rows: Sequence[Row]
    machine: str = ""

    def write_assets(self) -> None:
        """Styles and scripts, as they come with the package."""
        home = resources.files("robustbench_sparse.pages") / "assets"
        for name in ASSETS:
            write_text(self.out / "assets" / name, (home / name).read_text(encoding="utf-8"))

    def write_downloads(self) -> None:
        """All rows as CSV, Markdown, LaTeX and JSON, and the methods' papers."""
        tables = [b.table for b in self.boards]
        for form, ending in (("csv", "csv"), ("markdown", "md"), ("latex", "tex")):
            write_text(self.out / "downloads" / f"leaderboard.{ending}", text_of(tables, form))
        cards = [card_of(row) for row in self.rows]
        write_text(
            self.out / "downloads" / "leaderboard.json",
            json.dumps(cards, indent=1, ensure_ascii=False) + "\n",
        )
        methods = sorted({m for row in self.rows for m in row.entry.methods})
        write_text(self.out / "downloads" / "methods.bib", bibtex(methods))

    def write_index(self) -> None:
        """The leaderboard, and the data of its script."""
        env = _environment()
        cell = env.get_template("cell.html").module.cell  # type: ignore[attr-defined]

        def rendered(row: Row, place: int) -> str:
            return str(cell(self.columns[place], row, row.cells[place])).strip()

        write_text(
            self.out / "assets" / "data.js",
            as_script("REPORT", report_data(self.columns, self.rows, rendered)),
        )
        shown = [i for i, c in enumerate(self.columns) if c.shown]
        self._page(
            env,
            "leaderboard.html",
            INDEX,
            columns=self.columns,
            shown=shown,
            rows=self.rows,
            facets=FACETS,
            method=METHOD,
        )

    def write_charts(self, show: Progress) -> None:
        """The charts' page: drawings that need no script, and what the script makes of them."""
        found = charting.charts_of(self.boards)
        task = show.start("charts", sum(len(some) for _, some in found), "charts")
        for _, some in found:
            for chart in some:
                write_text(self.out / "charts" / f"{chart.id}.svg", charting.drawn(chart.spec))
                task.advance(1)
        task.close()
        specs: dict[str, Any] = {chart.id: chart.spec for _, some in found for chart in some}
        specs["explorer"] = charting.explorer()
        write_text(self.out / "assets" / "charts-data.js", as_script("CHARTS", specs))
        write_text(self.out / "assets" / "vega.js", charting.bundle())
        self._page(_environment(), "charts.html", CHARTS, boards=found)

    def write_runs(self, show: Progress) -> None:
        """A page, a card and the pictures of every row that has a folder."""
        paged = [row for row in self.rows if row.page]
        if not paged:
            return
        env, images, sights = _environment(), Images(self.wishes.data_root), sights_of(self.rows)
        task = show.start("pages of runs", len(paged), "pages")
        for row in paged:
            page = run_page(row, self.rows, sights, images, self.wishes.gallery)
            for name, png in page.pictures.items():
                write_atomically(self.out / "runs" / row.id / name, lambda f, png=png: f.write(png))  # type: ignore[misc]
            card = json.dumps(card_of(row), indent=1, ensure_ascii=False) + "\n"
            write_text(self.out / "runs" / row.id / "card.json", card)
            write_text(self.out / "runs" / row.id / "card.md", card_text(row))
            write_text(self.out / "runs" / row.id / "methods.bib", bibtex(row.entry.methods))
            self._page(env, "run.html", row.page, up="../", page=page, columns=self.columns)
            task.advance(1)
        task.close()

    def _page(self, env: Environment, template: str, name: str, up: str = "", **facts: Any) -> None:
        text = env.get_template(template).render(
            up=up,
            title=self.wishes.title,
            live=self.wishes.live,
            has_charts=self.wishes.charts or self.wishes.charts_linked,
            machine=self.machine,
            **facts,
        )
        write_text(self.out / name, text)


def _environment() -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("robustbench_sparse.pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
