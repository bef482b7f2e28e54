"""Pages of the documentation that are made of the code: one a method, one a check, and a list of each.

A method's page is its docstring, its settings, and what ``docs/methods/notes.yaml`` adds: the equation in one block,
what it reproduces here, pitfalls. A check's page is what its ``Check(...)`` says. Nothing is written; ``site_hooks``
hands the pages to mkdocs.
"""

from __future__ import annotations

import inspect
import posixpath
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import defenses
from attacks import ATTACKS
from defenses import DEFENSES, REGULARISERS
from robustbench_sparse.certificate.checks import CHECKS
from robustbench_sparse.certificate.finding import Check
from robustbench_sparse.config.optimizers import OPTIMIZERS as SPECS
from robustbench_sparse.config.plugins import settings_with_defaults
from robustbench_sparse.config.yaml_reader import read

ROOT = Path(__file__).parents[1]
NOTES = ROOT / "docs" / "methods" / "notes.yaml"
ROOMS = {
    "attacks": "Attacks",
    "robust": "Robust training and networks",
    "sparse": "Sparse training and pruning",
    "regularisers": "Regularisers",
}
# Optimizers that make zeros: in a config they stand under `train.optimizer`, not under `defenses`.
OPTIMIZERS = {"linbreg": defenses.LinBreg, "adabreg": defenses.AdaBreg, "proxsgd": defenses.ProxSGD}
_WORDS = re.compile(r"``(?P<code>[^`]+)``|:\w+:`(?P<role>[^`]+)`|(?P<url>https?://[^\s,;)]*[^\s,;).:])")
_SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Yields:")


def methods() -> dict[str, dict[str, type]]:
    """Room -> name in a config -> class, in the order of the tables of contents."""
    rooms: dict[str, dict[str, type]] = {"attacks": {**ATTACKS}, "robust": {}, "sparse": {}}
    for name, cls in DEFENSES.items():
        rooms["sparse" if ".sparse." in cls.__module__ else "robust"][name] = cls
    rooms["sparse"] |= OPTIMIZERS
    return {**rooms, "regularisers": {**REGULARISERS}}


def notes() -> dict[str, dict[str, Any]]:
    """What is written by hand of each method."""
    found, _ = read(NOTES)
    assert isinstance(found, dict)
    return found


def pages() -> dict[str, str]:
    """Every page, its path below ``docs`` -> its Markdown."""
    written, found = notes(), methods()
    out = {"methods/index.md": _methods_index(found), "checks/index.md": _checks_index()}
    for room, there in found.items():
        for name, cls in there.items():
            out[f"methods/{room}/{name}.md"] = method_page(room, name, cls, written.get(name, {}))
    out |= {f"checks/{check.id}.md": check_page(check) for check in CHECKS.values()}
    return out


def method_page(room: str, name: str, cls: type, note: Mapping[str, Any]) -> str:
    """A method: equation, what it is, its settings, what it reproduces here, pitfalls."""
    head, body, _ = _docstring(cls)
    module = inspect.getdoc(sys.modules[cls.__module__]) or ""
    shared = sum(cls.__module__ == other.__module__ for other in methods()[room].values()) > 1
    parts = [f"# {name}", markdown(head)]
    if note.get("equation"):
        parts += ["```text\n" + str(note["equation"]).rstrip() + "\n```"]
    parts += [markdown(paragraph) for paragraph in body]
    if not shared:
        parts += ["## Source", *(markdown(p) for p in module.split("\n\n"))]
    parts += ["## Settings", _settings(name, cls), _how(room, name)]
    here = str(note.get("here", "")) or "No page of the results is about it."
    parts += ["## What it reproduces here", _from(here, f"methods/{room}")]
    parts += [
        "## Pitfalls",
        "\n".join(f"* {_from(str(p), f'methods/{room}')}" for p in note.get("pitfalls", ())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def check_page(check: Check) -> str:
    """A check: what it asks, its rule, what a failure means, what to do next."""
    weight = (
        "A failure shows that the row's number is wrong: it refutes it."
        if check.refutes
        else "A failure gives reason to doubt the number."
    )
    return "\n\n".join(
        [
            f"# {check.id}: {markdown(check.title)}",
            weight,
            "## Rule",
            markdown(check.rule),
            "## What a failure means",
            markdown(check.meaning),
            "## What to do next",
            markdown(check.advice),
            "## Source",
            markdown(check.source),
            "`robustbench-sparse explain RUN` says what it found on a row. What failed checks do to a row's verdict: "
            "[how a number is judged](../judging.md#the-certificate).\n",
        ]
    )


def markdown(text: str) -> str:
    """A docstring's words as Markdown: code stays code, an address becomes a link, all else stays letter by letter."""
    out, at = [], 0
    for word in _WORDS.finditer(text):
        out.append(_plain(text[at : word.start()]))
        code = word["code"] or word["role"]
        out.append(f"`{' '.join(code.split())}`" if code else f"<{word['url']}>")
        at = word.end()
    return "".join([*out, _plain(text[at:])])


def _plain(text: str) -> str:
    safe = re.sub(r"([\\*_`\[\]#])", r"\\\1", text)
    return safe.replace("<", "&lt;").replace(">", "&gt;")


def _docstring(cls: type) -> tuple[str, list[str], dict[str, str]]:
    """Its first sentence, its paragraphs, and what it says of each setting."""
    parts = (inspect.cleandoc(cls.__doc__) if cls.__doc__ else "").split("\n\n")
    body = [p for p in parts[1:] if not p.startswith(_SECTIONS)]
    settings: dict[str, str] = {}
    for part in (p for p in parts if p.startswith(("Args:", "Attributes:"))):
        names: list[str] = []
        for line in part.splitlines()[1:]:
            begins = re.match(r"    (\w[\w, ]*): (.*)", line)
            if begins:
                names = [name.strip() for name in begins[1].split(",")]
            for name in names:
                settings[name] = begins[2] if begins else f"{settings[name]} {line.strip()}"
    return parts[0], body, settings


def _settings(name: str, cls: type) -> str:
    """A table of settings with their defaults, those of its bases among them."""
    spec = SPECS[name] if name in OPTIMIZERS else cls
    read_of = [*reversed(cls.__mro__), *reversed(spec.__mro__), cls]
    texts = {k: v for some in read_of for k, v in _docstring(some)[2].items()}
    defaults = settings_with_defaults(spec)
    if not defaults:
        return "It has none."
    rows = ["| setting | default | |", "| --- | --- | --- |"]
    for setting, default in defaults.items():
        shown = "required" if default is ... else f"`{_as_yaml(default)}`"
        rows.append(f"| `{setting}` | {shown} | {_cell(texts.get(setting, ''))} |")
    return "\n".join(rows)


def _as_yaml(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return str(value)


def _how(room: str, name: str) -> str:
    """How a config names it."""
    entry = {
        "attacks": f"attacks:\n  {name}: {{name: {name}}}",
        "regularisers": f"defenses:\n  - {{name: rvsm, regulariser: {name}}}",
    }.get(room, f"defenses:\n  - {{name: {name}}}")
    if name in OPTIMIZERS:
        entry = f"train:\n  optimizer: {{name: {name}}}"
    return f"```yaml\n{entry}\n```"


def _methods_index(found: Mapping[str, Mapping[str, type]]) -> str:
    parts = ["# Methods", "One page each: the equation, what it reproduces here, its settings, its pitfalls."]
    for room, there in found.items():
        rows = ["| name | |", "| --- | --- |"]
        for name, cls in there.items():
            rows.append(f"| [`{name}`]({room}/{name}.md) | {_cell(_docstring(cls)[0])} |")
        parts += [f"## {ROOMS[room]}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _checks_index() -> str:
    rows = ["| check | asks whether | a failure |", "| --- | --- | --- |"]
    for check in CHECKS.values():
        weight = "refutes" if check.refutes else "raises doubt"
        rows.append(f"| [{check.id}]({check.id}.md) | {_cell(check.title)} | {weight} |")
    return "\n\n".join(
        [
            "# Checks",
            f"{len(CHECKS)} checks ask whether a row's number can be believed. What their failures come to: "
            "[how a number is judged](../judging.md#the-certificate).",
            "\n".join(rows) + "\n",
        ]
    )


def _cell(text: str) -> str:
    return markdown(" ".join(text.split())).replace("|", "\\|")


def _from(text: str, folder: str) -> str:
    """Links seen from ``docs`` as they are seen from a page below it."""
    return re.sub(
        r"\]\(([^)#:]+)(#[^)]*)?\)", lambda m: f"]({posixpath.relpath(m[1], folder)}{m[2] or ''})", text
    )
