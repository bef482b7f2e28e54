"""The report in a real browser: Debian's Chromium, one for all tests; skipped where it is not installed."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustbench_sparse.pages.writing import Wishes, write_report
from tests.helpers.report_results import trained

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
ARGUMENTS = ["--no-sandbox", "--disable-background-networking"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("site")
    write_report([trained(home), "zoo:"], home / "out", Wishes(title="Digits", gallery=3))
    return home / "out"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must not complain, nor ask any host for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    one, complaints = context.new_page(), []
    one.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    one.on("pageerror", lambda e: complaints.append(str(e)))
    one.on(
        "request",
        lambda r: None if r.url.startswith(("file:", "blob:", "data:")) else complaints.append(r.url),
    )
    yield one
    context.close()
    assert complaints == []


def runs(page: Any) -> list[str]:
    found: list[str] = page.locator("#board tbody tr td.k-link bdi").all_inner_texts()
    return found


def open_page(page: Any, file: Path, state: str = "") -> None:
    page.goto(file.as_uri() + state)


def test_sorting_filters_and_columns_are_in_the_address_and_come_back(page: Any, site: Path) -> None:
    open_page(page, site / "index.html")
    assert len(runs(page)) == 14
    page.locator("#board thead button", has_text="Worst case").click()
    by_worst = runs(page)
    page.locator("#facets summary", has_text="Data").click()
    page.locator("[data-choice='data=MNIST']").check()
    some = runs(page)
    assert some == [run for run in by_worst if run.startswith("mnist/")]
    assert some
    page.locator(".chooser summary", has_text="Columns").click()
    page.locator("#columns input[value='protocol']").check()
    page.keyboard.press("Escape")
    page.locator("#board thead button", has_text="Clean").click(modifiers=["Shift"])
    address = page.url
    assert "sort=-worst%2C-clean" in address
    assert "data=MNIST" in address
    other = page.context.new_page()
    other.goto(address)
    assert runs(other) == some
    assert other.locator("#board thead th", has_text="Protocol").count() == 1
    assert other.locator("#board thead th[aria-sort='descending']").inner_text().startswith("Worst case")


def test_the_evidence_opens_and_closes_by_keyboard(page: Any, site: Path) -> None:
    open_page(page, site / "index.html")
    badge = page.locator("details.proof > summary", has_text="G1").first
    badge.focus()
    page.keyboard.press("Enter")
    shown = page.locator(".evidence:visible")
    assert "Repair: Attack it through its own gradient <b>mended</b>." in shown.inner_text()
    page.keyboard.press("Escape")
    assert page.locator(".evidence:visible").count() == 0
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_a_row_has_an_anchor_and_its_page_shows_images(page: Any, site: Path) -> None:
    data = (site / "assets" / "data.js").read_text().removeprefix("window.REPORT=").removesuffix(";\n")
    row = next(r for r in json.loads(data)["rows"] if "sparse" in r["text"])["id"]
    open_page(page, site / "index.html", f"#{row}")
    assert page.locator("tr.target td.k-link").inner_text().endswith("sparse")
    page.locator("tr.target td.k-link a", has_text="sparse").click()
    image = page.locator(".gallery img").first
    image.scroll_into_view_if_needed()
    assert image.evaluate("(i) => i.decode().then(() => i.naturalWidth)") == 3 * 8 + 2
    assert "Before:" in page.locator(".gallery figcaption").first.inner_text()
    assert page.locator("#flips").count() == 1
    assert "magnitude_prune" in page.locator("#yaml").inner_text()


def test_a_download_holds_the_numbers_that_are_shown(page: Any, site: Path, tmp_path: Path) -> None:
    open_page(page, site / "index.html", "#?sort=-clean&cols=run,clean,worst")
    page.locator(".chooser summary", has_text="Download").click()
    with page.expect_download() as found:
        page.locator("[data-form='csv']").click()
    found.value.save_as(tmp_path / "some.csv")
    with (tmp_path / "some.csv").open(newline="") as file:
        some = {row["run"]: row for row in csv.DictReader(file)}
    with (site / "downloads" / "leaderboard.csv").open(newline="") as file:
        whole = {row["run"]: row for row in csv.DictReader(file)}
    assert len(some) == 14
    assert list(some["natural"]) == [
        "run",
        "clean",
        "clean_lo",
        "clean_hi",
        "worst",
        "worst_lo",
        "worst_hi",
    ]
    for run, row in some.items():
        for column in ("clean", "clean_lo", "worst", "worst_hi"):
            assert float(row[column]) == pytest.approx(float(whole[run][column]), abs=5e-5), (run, column)


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_and_axe_finds_nothing_serious(
    page: Any, site: Path, width: int, scheme: str
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    pages = [site / "index.html", site / "charts.html", next(site.glob("runs/r-digits-sparse*.html"))]
    for file in pages:
        open_page(page, file)
        if file.name == "charts.html":
            page.wait_for_selector("#explorer svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, file.name
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        found = axe.Axe().run(page, options={"preload": False}).response["violations"]
        serious = [
            (v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")
        ]
        assert serious == [], file.name


def test_the_config_is_copied_by_a_button(page: Any, site: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_page(page, next(site.glob("runs/r-digits-sparse*.html")))
    page.locator("[data-copy='yaml']").click()
    page.locator("#copied", has_text="copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == page.locator("#yaml").inner_text().strip()
    assert yaml.safe_load(copied)["defenses"][0]["name"] == "magnitude_prune"


def test_printed_pages_show_the_whole_table_on_white_and_nothing_to_press(page: Any, site: Path) -> None:
    page.set_viewport_size({"width": 1040, "height": 720})  # A4 across, within the page's margins
    page.emulate_media(color_scheme="dark")
    open_page(page, site / "index.html")
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert [
        b
        for b in page.locator("button").all()
        if b.is_visible() and not b.locator("xpath=ancestor::th").count()
    ] == []
    table = page.locator("#board").bounding_box()
    assert len(runs(page)) == 14
    assert table["x"] + table["width"] <= 1040, "columns are cut off at the paper's edge"
    page.emulate_media(color_scheme="dark", media="screen")
    open_page(page, site / "charts.html")
    text = page.locator("#explorer svg text").first
    text.wait_for()
    assert text.evaluate("(t) => getComputedStyle(t).fill") != "rgb(0, 0, 0)"
    page.emulate_media(color_scheme="dark", media="print")
    assert text.evaluate("(t) => getComputedStyle(t).fill") == "rgb(0, 0, 0)"


def test_the_theme_is_chosen_by_a_button(page: Any, site: Path) -> None:
    page.emulate_media(color_scheme="light")
    open_page(page, site / "index.html")
    page.locator("#theme").press("Enter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_everything_is_there_without_a_script(browser: Any, site: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    open_page(page, site / "index.html")
    assert len(runs(page)) == 14
    page.locator("details.proof > summary", has_text="G1").first.click()
    assert "Repair:" in page.locator(".evidence:visible").inner_text()
    assert page.locator(".tools:visible").count() == 0
    open_page(page, site / "charts.html")
    assert page.locator("figure img").first.is_visible()
    context.close()
