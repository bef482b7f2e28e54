"""The result as people read it (terminal, Markdown) and as programs do (CSV)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lines import Line, number
from benchmarks.timing import Spread
from robustbench_sparse.foundation.environment import processor
from robustbench_sparse.foundation.files import write_text

HEADS = ("what", "ours", "peer", "ratio", "target", "verdict agreement")


def machine(device: torch.device, threads: int) -> str:
    """A file name for the machine: the processor or the GPU, and how many threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    plain = re.sub(r"\((r|tm|c)\)|@.*|\b(cpu|processor)\b", " ", name.lower())
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words if device.type == "cuda" else f"{words}-{threads}-threads"


def cells(line: Line) -> tuple[str, ...]:
    """A line as texts, one for each of ``HEADS``."""
    if line.failed:
        return line.what, "failed", line.peer, "", "", line.failed
    peer = " ".join(part for part in (line.peer, _spread(line.theirs, line.unit)) if part)
    ratio = "" if line.ratio is None else f"{number(line.ratio)} x"
    ours = _spread(line.ours, line.unit)
    if line.ours is None:
        ours = f"{line.got:g} {line.target.unit}" if line.target and line.met is not None else "not measured"
    return line.what, ours, peer, ratio, _target(line), line.agreement


def _spread(spread: Spread | None, unit: str) -> str:
    if spread is None:
        return ""
    text = f"{number(spread.median)} {unit}".strip()
    return text if spread.count == 1 else f"{text} ({number(spread.low)} to {number(spread.high)})"


def _target(line: Line) -> str:
    if line.target is None:
        return ""
    if line.met is None:
        return f"{line.target}: not measured"
    # Where the ratio or our own number is what counts, it stands in its own column already.
    own = line.got in (line.ratio, line.ours.median if line.ours else line.got)
    got = "" if own or line.got is None else f", {number(line.got)}"
    return f"{line.target}: {'met' if line.met else 'MISSED'}{got}"


def show(console: Console, lines: Sequence[Line]) -> None:
    """Print the table and its notes."""
    table = Table(show_lines=False)
    for head in HEADS:
        table.add_column(head, overflow="fold")
    for line in lines:
        style = "red" if line.failed or line.met is False else "green" if line.met else ""
        table.add_row(*cells(line), style=style)
    console.print(table)
    for note in _notes(lines):
        console.print(note, style="dim", markup=False, highlight=False)


def _notes(lines: Sequence[Line]) -> list[str]:
    return [
        f"{line.what}{f' / {line.peer}' if line.peer else ''}: {line.note}" for line in lines if line.note
    ]


def markdown(facts: Mapping[str, object], lines: Sequence[Line]) -> str:
    """Where it was measured, the table, the notes."""
    out = ["# Benchmarks", ""]
    out += [f"* {name}: {value}" for name, value in facts.items()]
    out += ["", "Medians over interleaved rounds, smallest and largest in brackets.", ""]
    out += ["| " + " | ".join(HEADS) + " |", "| --- | ---: | ---: | ---: | --- | --- |"]
    out += ["| " + " | ".join(cell.replace("|", "/") for cell in cells(line)) + " |" for line in lines]
    return "\n".join([*out, "", *(f"* {note}" for note in _notes(lines)), ""])


def table_csv(facts: Mapping[str, object], lines: Sequence[Line]) -> str:
    """One row a line, all numbers as measured; machine, commit and date in every row."""
    text = io.StringIO()
    where = {
        key: facts.get(key, "") for key in ("processor", "device", "threads", "commit", "date", "images")
    }
    fields = [
        "row",
        "what",
        "unit",
        "ours",
        "ours_low",
        "ours_high",
        "rounds",
        "peer",
        "theirs",
        "theirs_low",
    ]
    fields += ["theirs_high", "ratio", "target", "got", "met", "agreement", "failed", *where]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        ours, theirs = _numbers(line.ours), _numbers(line.theirs)
        writer.writerow(
            {
                "row": line.row,
                "what": line.what,
                "unit": line.unit,
                **{"ours": ours[0], "ours_low": ours[1], "ours_high": ours[2]},
                "rounds": line.ours.count if line.ours else "",
                "peer": line.peer,
                **{"theirs": theirs[0], "theirs_low": theirs[1], "theirs_high": theirs[2]},
                "ratio": _raw(line.ratio),
                "target": "" if line.target is None else str(line.target),
                "got": _raw(line.got),
                "met": "" if line.met is None else line.met,
                "agreement": line.agreement,
                "failed": line.failed,
                **where,
            }
        )
    return text.getvalue()


def _numbers(spread: Spread | None) -> tuple[str, str, str]:
    return ("", "", "") if spread is None else (_raw(spread.median), _raw(spread.low), _raw(spread.high))


def _raw(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def write(path: Path, facts: Mapping[str, object], lines: Sequence[Line]) -> list[Path]:
    """Write ``path`` with the endings .md and .csv; what was written."""
    written = []
    for suffix, text in ((".md", markdown(facts, lines)), (".csv", table_csv(facts, lines))):
        target = path.with_suffix(suffix)
        write_text(target, text)
        written.append(target)
    return written
