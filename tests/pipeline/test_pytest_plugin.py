"""The pytest plug-in in the tests of somebody else: fixtures, references, rewriting them, JUnit and summaries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

import pytest_robustbench_sparse
from tests.helpers.linear_nets import EPS, trained, truth, write_net

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]

TESTS = f"""
import torch
from mynet import net
from robustbench_sparse.testing import assert_sparse


def test_robust(assert_robust):
    assert_robust(net(), "digits", "fgsm", {EPS}, reference="x.json", row="digits/fgsm", limit=60)


def test_enough(assert_robust):
    assert_robust(net(), "digits", "fgsm", {EPS}, at_least=20, limit=60)


def test_zeros():
    assert_sparse(net(), 0)


def test_nothing():
    pass
"""


@pytest.fixture
def home(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a network, three tests, and no reference yet."""
    for name in ("CI", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    write_net(pytester.path, "mynet")
    pytester.makepyfile(test_net=TESTS)
    pytester.syspathinsert()
    return pytester.path


def call(pytester: pytest.Pytester, *words: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "pytest_robustbench_sparse", "-p", "no:xdist", *words)


def spoil(folder: Path) -> None:
    """Noise on the weights, as a change that costs robustness."""
    state = trained().state_dict()
    noise = torch.randn(10, 64, generator=torch.Generator().manual_seed(1))
    torch.save({**state, "weight": state["weight"] + noise}, folder / "weights.pt")


def test_from_no_reference_to_a_regression(
    pytester: pytest.Pytester, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = call(pytester, "-k", "test_robust")
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines(
        ["*x.json: no row 'digits/fgsm'; pytest --rbs-update 'digits/fgsm' writes it*"]
    )
    assert not (home / "x.json").exists()

    other = call(pytester, "--rbs-update", "other", "-k", "test_robust")
    other.assert_outcomes(failed=1)
    assert not (home / "x.json").exists(), "only rows that are named are written"

    renewed = call(pytester, "--rbs-update", "digits/*", "-k", "test_robust")
    renewed.assert_outcomes(failed=1)
    renewed.stdout.fnmatch_lines(["1 row of x.json rewritten: digits/fgsm"])
    row = json.loads((home / "x.json").read_text())["rows"]["digits/fgsm"]
    assert set(row) == {"protocol", "images", "threat", "attacks", "percent", "networks", "made"}
    assert row["percent"] == pytest.approx(truth()["fgsm"], abs=1e-3)

    summary, report = home / "summary.md", home / "junit.xml"
    held = call(pytester, "--rbs-summary", str(summary), f"--junitxml={report}")
    held.assert_outcomes(passed=4)
    held.stdout.fnmatch_lines(
        [
            "*= robustness =*",
            f"held     digits/fgsm: {truth()['fgsm']:.1f} % of 60 images, *smallest drop that would be seen 8.3 points",
            f"held     test_enough: {truth()['fgsm']:.1f} % of 60 images withstand*at least 20 %*",
            "held     test_zeros: * of the weights are zero*",
        ]
    )
    properties = {p.get("name"): p.get("value") for p in ElementTree.parse(report).iter("property")}
    assert properties["robustness digits/fgsm outcome"] == "held"
    assert float(properties["robustness digits/fgsm smallest"] or 0) == pytest.approx(100 * 5 / 60, rel=1e-4)
    assert summary.read_text().count("| held |") == 3

    spoil(home)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(home / "step.md"))
    fell = call(pytester, "-k", "test_robust")
    fell.assert_outcomes(failed=1)
    fell.stdout.fnmatch_lines(["*fell below the reference:*", "*digits/fgsm: *McNemar's one-sided p = *"])
    (line,) = [line for line in (home / "step.md").read_text().splitlines() if "digits/fgsm" in line]
    assert line.startswith("| digits/fgsm | ")
    assert line.endswith("| **fell** |")


def test_of_tests_side_by_side_one_process_sums_up(tmp_path: Path) -> None:
    facts = {"row": "a|b", "measured": 50.0, "wanted": 60.0, "outcome": "fell", "text": "t"}
    place, lines = tmp_path / "s.md", list[str]()

    def summed(**config: object) -> None:
        pytest_robustbench_sparse.pytest_terminal_summary(
            SimpleNamespace(
                stats={"failed": [SimpleNamespace(robustness=[facts])], "": [object()]},
                config=SimpleNamespace(getoption=lambda name: str(place), **config),
                section=lines.append,
                line=lines.append,
            )
        )

    summed(workerinput={})
    assert (lines, place.exists()) == ([], False)
    summed()
    assert lines == ["robustness", "fell     a|b: t"]
    assert "| a\\|b | 50.0 | 60.0 |  | **fell** |" in place.read_text()


def test_references_are_not_rewritten_where_ci_is_set(
    pytester: pytest.Pytester, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    refused = call(pytester, "--rbs-update", "digits/fgsm", "-k", "test_robust")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*--rbs-update: refused where CI is set*"])
    assert not (home / "x.json").exists()


def test_a_start_of_pytest_does_not_wait_for_torch_nor_mind_folders_of_our_names(tmp_path: Path) -> None:
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "__init__.py").write_text("")
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test_it(): assert not {'torch', 'robustbench_sparse'} & set(sys.modules)\n"
    )
    program = f"import sys; sys.path[:0] = ['', {str(ROOT)!r}]; import pytest; sys.exit(pytest.main())"
    words = ["-q", "-p", "pytest_robustbench_sparse", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [sys.executable, "-c", program.replace("main()", f"main({words!r})")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
