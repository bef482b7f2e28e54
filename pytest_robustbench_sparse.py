"""A pytest plug-in: robustness and sparsity held against a reference, in the tests of any project.

``docs/ci.md`` shows it. pytest loads this file at every start, so it imports nothing but pytest: torch and this
package come in with the first assertion. It stands outside the package since importing that refuses folders called
``attacks`` and ``defenses`` beside the tests, which is nobody's business who only has the package installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_COLUMNS = ("row", "measured in %", "reference in %", "smallest drop seen", "outcome")
_PROPERTIES = ("measured", "wanted", "n", "p", "smallest", "outcome")


@dataclass
class AtWork:
    """The test at work.

    Attributes:
        name: the test's.
        update: names of rows to rewrite, with ``*`` and ``?``.
        found: what its assertions found, as plain values.
    """

    name: str
    update: tuple[str, ...] = ()
    found: list[dict[str, Any]] = field(default_factory=list)


current: AtWork | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("robustbench_sparse", "robustness and sparsity")
    group.addoption(
        "--rbs-update",
        action="append",
        default=[],
        metavar="ROW",
        help="Rewrite these rows of references (* and ? match all); tests still fail. Refused where CI is set.",
    )
    group.addoption(
        "--rbs-summary",
        metavar="FILE",
        help="Append a summary in Markdown; by default to $GITHUB_STEP_SUMMARY, where it is set.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to rewrite references where nobody looks at them."""
    if config.getoption("rbs_update") and os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise pytest.UsageError(
            "--rbs-update: refused where CI is set: rewrite references at your desk, look at the change, and commit it"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Say which test is at work."""
    global current  # noqa: PLW0603 (what plain functions in a test have to find)
    asked = [name.strip() for text in item.config.getoption("rbs_update") for name in text.split(",")]
    current = AtWork(item.name, tuple(asked))
    try:
        return (yield)
    finally:
        current = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what was found on the report: as properties, which JUnit files have, and for the summaries."""
    found = current.found if current is not None and call.when == "call" else []
    for facts in found:
        for key in _PROPERTIES:
            if facts.get(key) is not None:
                value = facts[key]
                text = f"{value:.6g}" if isinstance(value, float) else str(value)
                item.user_properties.append((f"robustness {facts['row']} {key}", text))
    report = yield
    if found:  # an attribute of its own: tests side by side hand it to the process that sums up
        report.robustness = [{**facts, "test": item.nodeid} for facts in found]  # type: ignore[attr-defined]
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each number, rows that were rewritten, and the summary in Markdown."""
    reports = [r for group in terminalreporter.stats.values() for r in group]
    found = [facts for report in reports for facts in getattr(report, "robustness", [])]
    if not found or hasattr(
        terminalreporter.config, "workerinput"
    ):  # of tests side by side one process sums up
        return
    terminalreporter.section("robustness")
    for facts in found:
        if facts["outcome"] != "rewritten":
            terminalreporter.line(f"{facts['outcome']:<9}{facts['row']}: {facts['text']}")
    renewed = [facts for facts in found if facts["outcome"] == "rewritten"]
    for path in dict.fromkeys(facts["renewed"] for facts in renewed):
        rows = [facts["row"] for facts in renewed if facts["renewed"] == path]
        terminalreporter.line(
            f"{len(rows)} row{'s' * (len(rows) != 1)} of {path} rewritten: {', '.join(rows)}"
        )
    place = terminalreporter.config.getoption("rbs_summary") or os.environ.get("GITHUB_STEP_SUMMARY")
    if place:
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(markdown(found))


def markdown(found: list[dict[str, Any]]) -> str:
    """What was found as a table in Markdown, the worst first."""
    order = ("fell", "broken", "rewritten", "improved", "held")
    lines = ["", "### Robustness", "", f"| {' | '.join(_COLUMNS)} |", "| --- | ---: | ---: | ---: | --- |"]
    for facts in sorted(found, key=lambda f: order.index(f["outcome"])):
        numbers = [facts.get(key) for key in ("measured", "wanted", "smallest")]
        cells = ["" if v is None or v != v else f"{v:.1f}" for v in numbers]
        outcome = f"**{facts['outcome']}**" if facts["outcome"] in order[:2] else facts["outcome"]
        row = " ".join(str(facts["row"]).replace("|", "\\|").split())
        lines.append(f"| {' | '.join([row, *cells, outcome])} |")
    return "\n".join([*lines, "", ""])


@pytest.fixture
def assert_robust() -> Callable[..., None]:
    """``robustbench_sparse.testing.assert_robust``."""
    from robustbench_sparse import testing

    return testing.assert_robust


@pytest.fixture
def assert_sparse() -> Callable[..., None]:
    """``robustbench_sparse.testing.assert_sparse``."""
    from robustbench_sparse import testing

    return testing.assert_sparse


@pytest.fixture
def assert_no_regression() -> Callable[..., None]:
    """``robustbench_sparse.testing.assert_no_regression``."""
    from robustbench_sparse import testing

    return testing.assert_no_regression
