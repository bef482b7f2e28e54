"""``python -m benchmarks.site_check FOLDER``: built pages may load nothing from another host.

Links that a reader follows are no concern of it; scripts, styles, pictures, fonts and frames are.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

LOADS = {
    **dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed"), "src"),
    "object": "data",
}
LINKS = (
    "stylesheet",
    "preconnect",
    "dns-prefetch",
    "prefetch",
    "preload",
    "icon",
    "manifest",
    "modulepreload",
)
SHOWN = 20
_ELSEWHERE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
_IN_STYLE = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)


class _Page(HTMLParser):
    """Collects what a page would ask other hosts for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        loaded = [given.get(LOADS.get(tag, ""), "")]
        if tag == "link" and any(word in LINKS for word in given.get("rel", "").split()):
            loaded.append(given.get("href", ""))
        loaded += [part.split()[0] for part in given.get("srcset", "").split(",") if part.split()]
        self.found += [f"{tag} {address}" for address in loaded if _ELSEWHERE.match(address)]
        self.found += [f"style {address}" for address in _IN_STYLE.findall(given.get("style", ""))]

    handle_startendtag = handle_starttag


def requests_of(folder: Path) -> list[str]:
    """What the pages and styles below a folder would load from other hosts, as ``file: what``."""
    out = []
    for path in sorted(folder.rglob("*.html")):
        page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
        out += [f"{path.relative_to(folder)}: {what}" for what in page.found]
    for path in sorted(folder.rglob("*.css")):
        found = _IN_STYLE.findall(path.read_text(encoding="utf-8"))
        out += [f"{path.relative_to(folder)}: style {address}" for address in found]
    return out


def main() -> int:
    """Print what is loaded from elsewhere; 1 where there is any, 2 where there are no pages."""
    if len(sys.argv) != 2 or not any(Path(sys.argv[1]).glob("*.html")):
        print("usage: python -m benchmarks.site_check FOLDER, a folder of built pages", file=sys.stderr)
        return 2
    found = requests_of(Path(sys.argv[1]))
    more = f"and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    print("\n".join([*found[:SHOWN], more]).strip() or f"{sys.argv[1]}: nothing is loaded from elsewhere")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
