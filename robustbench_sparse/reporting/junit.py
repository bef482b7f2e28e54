"""A comparison with a reference as JUnit XML and as Markdown: what servers that build and test show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from robustbench_sparse.foundation.files import write_atomically
from robustbench_sparse.foundation.texts import markdown as cell
from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.reporting.reference import Difference


def write(path: Path, title: str, rows: Sequence[str], differences: Sequence[Difference]) -> None:
    """Write a test case for every row of a reference.

    One that fell is a failure, one that could not be compared an error; what improved is said in its output.
    Differences have their numbers as properties.

    Args:
        path: the file.
        title: the suite's name.
        rows: all of the reference, by name.
        differences: of ``reference.check``.

    Raises:
        UserError: the file cannot be written.
    """
    suite = ElementTree.Element("testsuite", name=printable(title), tests=str(len(rows)))
    counts = {"failures": 0, "errors": 0}
    for row in rows:
        case = ElementTree.SubElement(
            suite, "testcase", classname="robustbench-sparse.check", name=printable(row)
        )
        own = [d for d in differences if d.run == row]
        if own:
            properties = ElementTree.SubElement(case, "properties")
        for d in own:
            for key, value in (("reference", d.reference), ("measured", d.measured)):
                if not math.isnan(value):
                    name = printable(f"{d.column} {key}")
                    ElementTree.SubElement(properties, "property", name=name, value=f"{value:.4f}")
        for kind, tag, counted in (("broken", "error", "errors"), ("fell", "failure", "failures")):
            told = [line(d) for d in own if d.kind == kind]
            if told:
                counts[counted] += 1
                ElementTree.SubElement(case, tag, message=told[0], type=kind).text = "\n".join(told)
                break  # a case has one end
        better = [line(d) for d in own if d.kind == "improved"]
        if better:
            ElementTree.SubElement(case, "system-out").text = "\n".join(
                ["better than the reference:", *better]
            )
    for key, count in counts.items():
        suite.set(key, str(count))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    write_atomically(path, lambda f: f.write(text + b"\n"))


def line(d: Difference) -> str:
    """A difference in one line."""
    numbers = "" if math.isnan(d.measured) else f" {d.measured:.2f}, the reference {d.reference:.2f}"
    return printable(f"{d.column}{numbers}: {d.problem}".strip(": "))


def summary(title: str, rows: Sequence[str], differences: Sequence[Difference]) -> str:
    """The comparison for a summary: a table of what differs, or a line."""
    out = ["", f"### {cell(title)}", ""]
    if not differences:
        return "\n".join([*out, f"{len(rows)} rows: everything that the reference states holds.", "", ""])
    out += ["| row | column | reference | measured | |", "| --- | --- | ---: | ---: | --- |"]
    for d in differences:
        numbers = ["" if math.isnan(v) else f"{v:.2f}" for v in (d.reference, d.measured)]
        cells = [d.run, d.column, *numbers, f"**{d.kind}**: {d.problem}"]
        out.append(f"| {' | '.join(cell(c) for c in cells)} |")
    return "\n".join([*out, "", ""])
