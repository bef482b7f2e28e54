"""Every committed reference has a page with its numbers, and whatever a page links is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.result_pages import PAGES as RESULTS
from benchmarks.result_pages import outdated
from benchmarks.result_tables import filled, table_of

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
SHOWN = [*PAGES, ROOT / "README.md", ROOT / "results" / "README.md", ROOT / "results" / "PLAN.md"]


def linked(page: Path) -> list[str]:
    """Targets of links within the repository, without the part behind #."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    return [link for link in found if link and "://" not in link and not link.startswith("mailto:")]


@pytest.mark.parametrize("page", SHOWN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in linked(page) if not (page.parent / link).exists()]
    assert not broken


def test_every_reference_has_a_page_that_links_it() -> None:
    links = {(page.parent / link).resolve() for page in PAGES for link in linked(page)}
    references = [path for path in (ROOT / "results" / "reference").iterdir() if path.is_dir()]
    assert len(references) > 10
    assert not [path.name for path in references if path.resolve() not in links]


def test_every_page_of_results_is_listed_and_has_its_figures() -> None:
    index = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    pages = sorted((ROOT / "docs" / "results").glob("*.md"))
    assert not [page.name for page in pages if f"docs/results/{page.name}" not in index]
    shown = {link for page in pages for link in linked(page) if link.startswith("figures/")}
    there = {f"figures/{path.name}" for path in (ROOT / "docs" / "results" / "figures").iterdir()}
    assert shown == there


def test_tables_are_those_of_their_references() -> None:
    assert not [page.name for page in outdated()], "run make results-pages"
    assert (
        sum(page.read_text(encoding="utf-8").count("<!-- table: begin") for page in RESULTS.glob("*.md")) > 15
    )


def test_figures_are_small() -> None:
    assert not [p.name for p in (RESULTS / "figures").iterdir() if p.stat().st_size > 60_000]


CSV = """benchmark,run,seed,dataset,n,status,clean,clean_lo,clean_hi,worst,weight_sparsity,verdict,published_clean
b,a_90,0,d,100,ok,90,84,94,40,90,believable,71.4
b,a_90,1,d,100,ok,92,86,96,44,90,believable,71.4
b,c_90,0,d,100,ok,80,71,87,30,88,refuted,
b,c_90,1,d,100,ok,80,71,87,32,88,refuted,
b,one,0,d,100,ok,50,40,60,,0,,
"""


@pytest.fixture
def references(tmp_path: Path) -> Path:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "leaderboard.csv").write_text(CSV)
    return tmp_path


@pytest.mark.parametrize(
    ("what", "cells"),
    [
        ("clean", ["91.0", "80.0", "50.0"]),
        ("clean ±", ["91.0 ± 1.4", "80.0 ± 0.0", "50.0 [40.0, 60.0]"]),
        ("clean () .0f", ["91 (71)", "80", "50"]),
        ("clean #1", ["92.0", "80.0", ""]),
        ("clean each", ["90.0 92.0", "80.0 80.0", "50.0"]),
        ("100-weight_sparsity", ["10.0", "12.0", "100.0"]),
        ("clean / worst ±", ["91.0 / 42.0 ± 2.8", "80.0 / 31.0 ± 1.4", "50.0 / "]),
        # Differences 10 and 12: mean 11, deviation sqrt(2), Student's quantile of one degree 12.706.
        ("worst vs:c_90", ["+11.0 ± 12.7", "", ""]),
        ("verdict", ["believable", "refuted", ""]),
        (["1", None, "x"], ["1", "", "x"]),
    ],
)
def test_a_cell_is_what_the_comment_asks_for(references: Path, what: object, cells: list[str]) -> None:
    rows = {"a_90": "A", "c_90": "C", "one": "1"}
    if isinstance(what, str) and "vs:" in what:
        rows.pop("one")
        cells = [cells[0], "+0.0 ± 0.0" if cells[1] else ""]
    lines = table_of({"reference": "r", "columns": {"t": what}, "rows": rows}, references).splitlines()[2:]
    assert [line.split(" | ", 1)[1].removesuffix("|").strip() for line in lines] == [c.strip() for c in cells]


def test_rows_of_a_share_stand_in_one_line_and_say_where_it_was_missed(references: Path) -> None:
    spec = {"reference": "r", "columns": {"90 %": "@90 clean / worst at"}, "rows": {"a_{}": "A", "c_{}": "C"}}
    assert table_of(spec, references).splitlines()[2:] == [
        "| A | 91.0 / 42.0 |",
        "| C | 80.0 / 31.0 (at 88.0) |",
    ]


def test_a_page_is_filled_between_its_marks_alone(references: Path) -> None:
    head = "<!-- table: begin\nreference: r\ncolumns: {clean: clean}\nrows: {one: '1 | 2'}\n-->\n"
    page = f"before\n{head}old\n<!-- table: end -->\nbehind\n"
    table = "| | clean |\n| --- | ---: |\n| 1 \\| 2 | 50.0 |\n"
    assert filled(page, references) == f"before\n{head}{table}<!-- table: end -->\nbehind\n"
    with pytest.raises(ValueError, match="claen: no such column"):
        filled(page.replace("clean}", "claen}"), references)
    with pytest.raises(ValueError, match="two: no such row"):
        filled(page.replace("{one", "{two"), references)
