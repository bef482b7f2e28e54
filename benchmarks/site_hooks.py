"""What mkdocs calls while it builds the documentation: pages made of the code, and links that lead out of ``docs``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from benchmarks.site_pages import ROOMS, methods, pages
from robustbench_sparse.certificate.checks import CHECKS

SAMPLE = "sample/"  # a report, which has pages of its own
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s]*)\)")


def on_config(config: Any) -> Any:
    """Every method and every check gets its place in the navigation."""
    rooms = [
        {title: [{n: f"methods/{room}/{n}.md"} for n in methods()[room]]} for room, title in ROOMS.items()
    ]
    _fill(config.nav, "Methods", ["methods/index.md", *rooms])
    _fill(config.nav, "Checks", ["checks/index.md", *({i: f"checks/{i}.md"} for i in CHECKS)])
    return config


def _fill(nav: list[Any], title: str, pages: list[Any]) -> None:
    """Put pages below a title, wherever it stands."""
    for entry in (e for e in nav if isinstance(e, dict)):
        for name, there in entry.items():
            if name == title:
                entry[name] = pages
            elif isinstance(there, list):
                _fill(there, title, pages)


def on_files(files: Any, config: Any) -> Any:
    """Hand over the pages that are made of the code; the sample's texts stay files to download."""
    for file in [f for f in files if f.src_uri.startswith(SAMPLE) and f.is_documentation_page()]:
        files.remove(file)
    for path, text in pages().items():
        if (
            written := files.get_file_from_path(path)
        ) is not None:  # for those who read them without the site
            files.remove(written)
        files.append(File.generated(config, path, content=text))
    return files


def on_post_build(config: Any) -> None:
    """Put the sample's texts where its pages look for them."""
    docs, site = Path(config.docs_dir), Path(config.site_dir)
    for path in (docs / SAMPLE).rglob("*.md"):
        shutil.copyfile(path, site / path.relative_to(docs))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """What a link names in the repository, but not below ``docs``, is no page: its path is shown in its place."""
    depth = page.file.src_uri.count("/")

    def shown(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        if target.count("../") <= depth:
            return link[0]
        path = target.lstrip("./")
        return text if path.split("/")[-1].strip("`") in text else f"{text} (`{path}`)"

    return _LINK.sub(shown, markdown)
