"""The documentation's own pages: one for every method and check, links that lead somewhere, a whole navigation."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import pytest

from attacks import ATTACKS
from benchmarks.site_check import requests_of
from benchmarks.site_pages import markdown, methods, notes, pages
from defenses import DEFENSES, REGULARISERS
from robustbench_sparse.certificate.checks import CHECKS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def test_every_method_has_a_page_with_equation_settings_and_pitfalls(made: dict[str, str]) -> None:
    named = {*ATTACKS, *DEFENSES, *REGULARISERS, "linbreg", "adabreg", "proxsgd"}
    there = [name for room in methods().values() for name in room]
    assert sorted(there) == sorted(named), "none is missing, and none stands in two rooms"
    written = notes()
    assert {*written} == named
    assert not [
        name for name, note in written.items() if not note["equation"].strip() or not note["pitfalls"]
    ]
    assert {*(key for note in written.values() for key in note)} == {"equation", "here", "pitfalls"}
    for room, names in methods().items():
        for name in names:
            page = made[f"methods/{room}/{name}.md"]
            for head in ("## Settings", "## What it reproduces here", "## Pitfalls"):
                assert page.count(f"\n{head}\n") == 1, (name, head)


def test_every_check_has_a_page_with_its_rule(made: dict[str, str]) -> None:
    assert len(CHECKS) > 50
    for check in CHECKS.values():
        page = made[f"checks/{check.id}.md"]
        for text in (check.rule, check.meaning, check.advice):
            assert markdown(text) in page


def test_links_of_made_pages_lead_somewhere(made: dict[str, str]) -> None:
    broken = []
    for path, text in made.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            target, _, mark = link.partition("#")
            place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            there = made.get(place) or ((DOCS / place).read_text("utf-8") if (DOCS / place).is_file() else "")
            if not there or (mark and mark not in anchors(there)):
                broken.append(f"{path}: {link}")
    assert not broken


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head).strip()) for head in plain}


def test_words_of_a_docstring_are_not_taken_for_markdown() -> None:
    assert markdown("W[:, g] * x_i <= ``a_b``, :class:`x.Y`") == r"W\[:, g\] \* x\_i &lt;= `a_b`, `x.Y`"
    assert markdown("see https://arxiv.org/abs/1.2, (3)") == "see <https://arxiv.org/abs/1.2>, (3)"


def test_the_navigation_has_every_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"[\w/]+\.md", nav)
    assert len(set(listed)) == len(listed)
    there = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    assert {*listed} == {name for name in there if not name.startswith("sample/")}  # pages of their own


def test_counts_in_the_readme_are_those_of_the_tables() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{len(DEFENSES)} defenses and sparse methods" in text
    assert f"{len(ATTACKS)} attacks" in text
    assert f"{len(CHECKS)} checks" in text
    assert (DOCS / "index.md").read_text(encoding="utf-8").count(f"{len(CHECKS)} checks") == 2


def test_what_is_loaded_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://x.org">x</a><script src="s.js"></script><link rel="canonical" href="https://x.org">'
    )
    assert requests_of(tmp_path) == []
    (tmp_path / "b.html").write_text(
        '<script src="//c.org/s.js"></script><link rel="preconnect" href="https://f.org">'
        '<img srcset="https://i.org/a 2x">'
    )
    (tmp_path / "c.css").write_text(
        "a { background: url('https://p.org/q.png') } b { background: url(data:x) }"
    )
    assert requests_of(tmp_path) == [
        "b.html: script //c.org/s.js",
        "b.html: link https://f.org",
        "b.html: img https://i.org/a",
        "c.css: style https://p.org/q.png",
    ]
