"""``python -m benchmarks.result_pages``: fill the tables of ``docs/results`` and draw their figures anew.

Both are made of the committed references alone. ``--tables`` leaves the figures as they are; ``--check`` writes nothing
and says which pages are not what their references make of them.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.result_tables import REFERENCES, filled
from robustbench_sparse.reporting.figures.making import make

PAGES = Path(__file__).parents[1] / "docs" / "results"
# Figure, called as its reference -> its settings, where it does not show the worst case against clean accuracy alone.
SETTINGS: dict[str, dict[str, Any]] = {
    "fashion_bregman_small": {"x": "zero_weights", "y": ("clean",)},
    "mnist_bregman": {"x": "zero_weights", "y": ("clean",)},
    "mnist_robust_sparse_field": {"twin": ("pgd_at+dense_twin_90=pgd_at+magnitude_90",)},
    "cifar10_small": {"x": "zero_channels"},
}


def figures() -> list[str]:
    """Names of the figures that the pages show."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES.glob("*.md")]
    return sorted({name for text in texts for name in re.findall(r"\(figures/(\w+)\.svg\)", text)})


def outdated() -> list[Path]:
    """Pages whose tables are not what the references make of them."""
    return [page for page, text in _pages() if filled(text) != text]


def _pages() -> list[tuple[Path, str]]:
    return [(page, page.read_text(encoding="utf-8")) for page in sorted(PAGES.glob("*.md"))]


def main() -> int:
    """Fill and draw all of them, or check."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.result_pages", description=__doc__)
    parser.add_argument("--tables", action="store_true", help="leave the figures as they are")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where tables differ")
    asked = parser.parse_args()
    if asked.check:
        found = outdated()
        print("\n".join(map(str, found)) or "all tables are those of their references")
        return int(bool(found))
    for page, text in _pages():
        page.write_text(filled(text), encoding="utf-8")
    if not asked.tables:
        draw()
    return 0


def draw() -> None:
    """Draw every figure; letters stay letters, which a Git host shows, and which takes a third of their outlines."""
    import matplotlib as mpl

    mpl.rcParams["svg.fonttype"] = "none"
    for name in figures():
        path = PAGES / "figures" / f"{name}.svg"
        make("tradeoff", [REFERENCES / name], path, SETTINGS.get(name, {}))
        print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    sys.exit(main())
