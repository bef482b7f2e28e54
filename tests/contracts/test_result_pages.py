"""Every committed reference has a page, and whatever a page links is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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


def test_every_reference_has_a_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    references = [path.name for path in (ROOT / "results" / "reference").iterdir() if path.is_dir()]
    assert len(references) > 10
    assert not [name for name in references if name not in text]


def test_every_page_of_results_is_listed_and_has_its_figures() -> None:
    index = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    pages = sorted((ROOT / "docs" / "results").glob("*.md"))
    assert not [page.name for page in pages if f"docs/results/{page.name}" not in index]
    shown = {link for page in pages for link in linked(page) if link.startswith("figures/")}
    there = {f"figures/{path.name}" for path in (ROOT / "docs" / "results" / "figures").iterdir()}
    assert shown == there
