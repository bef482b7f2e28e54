from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from robustbench_sparse.pages.writing import Wishes, write_report
from tests.helpers.written_rows import Written, number, record, written

pytest.importorskip("jinja2")

QUOTES, MARKUP, TAGS = '"it\'s" && {{ 7*7 }}', "<script>alert(1)<", '"><img src=x onerror=alert(1)>'
TURNED, LONG = "\u05e9\u05dc\u05d5\u05dd \u202egnp.exe", "n" * 200
HOSTILE = (QUOTES, MARKUP, TAGS, TURNED, LONG)


class Elements(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("hostile")
    checks = [
        {**record("G1", "failed", bpda_acc=0.1), "advice": "<i>do</i> it"},
        number(0.5, 0.0, lowered=True),
    ]
    rows = {
        label: Written(stands=[1.0, 0.0], checks=checks, found={0: 0.0, 1: 0.0}, images=[0, 1], n=2)
        for label in HOSTILE
    }
    written(home / "b", rows)
    write_report([home / "b"], home / "out", Wishes(charts=False, title="<b>mine</b>"))
    return home / "out"


def test_hostile_labels_stay_texts(report: Path) -> None:
    page = Elements((report / "index.html").read_text())
    assert "img" not in {tag for tag, _ in page.tags}
    assert sum(tag == "script" for tag, _ in page.tags) == 3  # theme, data, behaviour: ours
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    shown = "".join(page.texts)
    assert QUOTES in shown
    assert MARKUP in shown
    assert TAGS in shown
    assert "\u202e" not in shown
    assert "\\u202e" in shown
    assert "<i>do</i> it" in shown
    ids = [a["id"] for tag, a in page.tags if tag == "tr" and "id" in a]
    assert len(set(ids)) == len(HOSTILE)


def test_data_of_the_script_cannot_end_it(report: Path) -> None:
    text = (report / "assets" / "data.js").read_text()
    assert "<" not in text
    assert text.isascii()
    data = json.loads(text.removeprefix("window.REPORT=").removesuffix(";\n"))
    place = [c["key"] for c in data["columns"]].index("run")
    assert {row["data"][place] for row in data["rows"]} == set(HOSTILE)


def test_pages_of_runs_are_made_and_nothing_leads_to_another_host(report: Path) -> None:
    pages = sorted(report.glob("**/*.html"))
    assert len(pages) == 1 + len(HOSTILE)
    for path in pages:
        for tag, attributes in Elements(path.read_text()).tags:
            for name in ("src", "href"):
                target = attributes.get(name) or ""
                assert "//" not in target, (path.name, tag, target)
                if target and not target.startswith(("#", "data:")):
                    assert (path.parent / target.partition("#")[0]).is_file(), (path.name, target)


def test_evidence_and_repair_stand_in_the_page_without_a_script(report: Path) -> None:
    shown = " ".join(Elements((report / "index.html").read_text()).texts)
    assert "title of G1" in shown
    assert "bpda 10.0 %" in shown
    assert "Repair:" in shown


def test_downloads_hold_the_numbers_of_the_table(report: Path) -> None:
    table = pd.read_csv(report / "downloads" / "leaderboard.csv")
    assert table["clean"].tolist() == [100.0] * len(HOSTILE)
    cards = json.loads((report / "downloads" / "leaderboard.json").read_text())
    assert {card["rates"]["clean"]["value"] for card in cards} == {100.0}
    assert {card["run"] for card in cards} == set(HOSTILE)
    (card,) = (report / "runs").glob("r-b-n*/card.md")
    assert "G1" in card.read_text()
    assert "upper bound" in card.read_text()
