"""The command line: help with examples, lists, one-line errors, exit codes, undecorated machine formats."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from robustbench_sparse import benchmark, evaluation
from robustbench_sparse.cli.listing import TABLES
from robustbench_sparse.config.plugins import import_object
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.leaderboard import tabulate
from robustbench_sparse.runs.seals import seal
from tests.helpers.commands import call, one_line

VERBS = ("run", "evaluate", "leaderboard", "list", "check", "curve", "quantise")


def results(
    folder: Path, name: str = "tiny", pgd: tuple[int, ...] = (1, 0, 0, 0), status: str = "ok"
) -> Path:
    """A benchmark's folder with one run, judged on four images."""
    home = folder / name / "runs" / "a-0"
    (home / "outcomes").mkdir(parents=True, exist_ok=True)

    def dump(path: Path, **value: Any) -> None:
        path.write_text(json.dumps(value))

    runs = [{"run_id": "a-0", "run": "a", "seed": 0}]
    threat = {"norm": "linf", "eps": 0.1}
    empty: dict[str, Any] = {"source": "", "published": {}}
    dump(
        folder / name / "benchmark.json",
        name=name,
        dataset="digits",
        attacks=["pgd"],
        threat=threat,
        runs=runs,
        **empty,
    )
    dump(home / "run.json", model="mlp()", defenses="", threat=threat)
    dump(home / "environment.json", commit="c")
    dump(home / "training.json", status="complete", reason="", train_seconds=1.0)
    shares = dict.fromkeys(("weight_sparsity", "channel_sparsity", "kernel_sparsity", "row_sparsity"), 50.0)
    dump(home / "sparsity.json", **shares, parameters=3, nonzero_parameters=2, macs=1)
    dump(home / "outcomes" / "clean.json", status="ok", reason="", n=4, seconds=1.0, key={})
    dump(
        home / "outcomes" / "pgd.json",
        status=status,
        reason="boom" * (status != "ok"),
        n=4,
        seconds=1.0,
        key={},
    )
    table = pd.DataFrame({"index": range(4), "label": 0, "correct": 1})
    table.to_csv(home / "outcomes" / "clean.csv", index=False)
    attacked = table.assign(adv_correct=pgd, linf=0.1, l2=1.0, status="ok")
    attacked.to_csv(home / "outcomes" / "pgd.csv", index=False)
    seal(home)
    return folder / name


# Help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    examples = result.stdout.partition("Examples:")[2]
    assert f"robustbench-sparse {verb} " in examples
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_commands_help_names_every_verb() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert all(verb in result.stdout for verb in VERBS)


def test_help_and_version_load_nothing_heavy() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from robustbench_sparse.cli.main import app\n"
        "for words in (['--help'], ['run', '--help'], ['--version']):\n"
        "    result = CliRunner().invoke(app, words)\n"
        "    assert result.exit_code == 0 and result.stdout, result\n"
        "heavy = {'torch', 'torchvision', 'pandas', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "robustbench_sparse", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.startswith("robustbench-sparse ")
    wrong = subprocess.run(
        [sys.executable, "-m", "robustbench_sparse", "list", "modles"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: list: nothing of the kind 'modles' (did you mean 'models'")


@pytest.mark.parametrize("words", [["nonsense"], ["run", "--nonsense"], ["run"], ["check", "x"]])
def test_unknown_words_are_refused_without_a_traceback(words: list[str]) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert result.stderr


# Lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_lists_name_every_plugin_with_its_settings(kind: str) -> None:
    result = call("list", kind)
    assert result.exit_code == 0
    table = import_object(TABLES[kind])
    blocks = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in blocks] == list(table)
    assert all(line.partition(": ")[2] for line in blocks)


def test_lists_show_defaults_as_yaml_and_what_is_required() -> None:
    schedules = call("list", "schedules").stdout
    assert "    milestones: []\n    gamma: 0.1\n" in schedules
    assert "    nesterov: false\n" in call("list", "optimizers").stdout
    assert "    step_size: null\n" in call("list", "attacks").stdout
    assert "    path: required\n" in call("list", "datasets").stdout


def test_configs_are_listed_with_name_and_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "quickstart: quickstart\n" in call("list", "configs").stdout, "those that come along, by name"
    monkeypatch.setattr("robustbench_sparse.foundation.shipped.folder", lambda kind: None)
    assert one_line(call("list", "configs")) == "configs: no benchmark files (*.yaml) here"
    (tmp_path / "configs" / "small").mkdir(parents=True)
    (tmp_path / "configs" / "b.yaml").write_text("name: b\nsource: a table\n")
    (tmp_path / "configs" / "small" / "c.yaml").write_text("name: c\n")
    result = call("list", "configs")
    assert result.stdout.splitlines() == ["configs/b.yaml: b", "    a table", "configs/small/c.yaml: c"]


# Leaderboard --------------------------------------------------------------------------------------------


def test_leaderboard_formats(tmp_path: Path) -> None:
    folder = results(tmp_path)
    (row,) = csv.DictReader(io.StringIO(call("leaderboard", str(folder), "--format", "csv").stdout))
    assert (row["run"], row["clean"], row["pgd"], row["worst"]) == ("a", "100.0", "25.0", "25.0")
    assert call("leaderboard", str(folder), "--format", "markdown").stdout.startswith("## tiny\n")
    assert call("leaderboard", str(folder), "--format", "latex").stdout.startswith("% tiny: ")
    shown = call("leaderboard", str(folder))
    assert shown.exit_code == 0
    assert shown.stdout.startswith("tiny\n")
    assert "25.0" in shown.stdout
    (over,) = csv.DictReader(
        io.StringIO(call("leaderboard", str(folder), "--seeds", "--format", "csv").stdout)
    )
    assert (over["seeds"], over["pgd_mean"], over["pgd_std"]) == ("1", "25.0", "")


def test_leaderboard_of_several_benchmarks(tmp_path: Path) -> None:
    results(tmp_path, "one")
    results(tmp_path, "two")
    rows = list(csv.DictReader(io.StringIO(call("leaderboard", str(tmp_path), "--format", "csv").stdout)))
    assert [r["benchmark"] for r in rows] == ["one", "two"]


def test_leaderboard_errors(tmp_path: Path) -> None:
    folder = results(tmp_path)
    assert one_line(call("leaderboard", str(folder), "--sort", "wrost")).startswith(
        "--sort: no column 'wrost' (did you mean 'worst'"
    )
    assert one_line(call("leaderboard", str(folder), "--format", "cvs")).endswith(
        "got 'cvs' (did you mean 'csv'?)"
    )
    assert one_line(call("leaderboard", str(tmp_path / "x"))).endswith("no such folder")
    (folder / "runs/a-0/outcomes/pgd.csv").write_text("index\n")
    assert "pgd.csv: changed since it was stored" in one_line(call("leaderboard", str(folder)))


def test_leaderboard_columns(tmp_path: Path) -> None:
    folder = str(results(tmp_path))
    chosen = call(
        "leaderboard", folder, "--columns", "parameters, clean,rank,commit,clean", "--format", "csv"
    )
    head = chosen.stdout.splitlines()[0]
    assert head == "benchmark,run,seed,parameters,clean,clean_lo,clean_hi,rank,commit"
    shown = call("leaderboard", folder, "--columns", "pgd,commit").stdout.splitlines()
    assert shown[3].split() == ["run", "pgd", "commit"]
    assert shown[5].split() == ["a", "25.0", "c"]
    table = call("leaderboard", folder, "--seeds", "--columns", "pgd", "--format", "markdown").stdout
    assert "| run | seeds | pgd |" in table
    assert "status" not in table
    assert (
        "\\toprule\nrun & pgd \\\\"
        in call("leaderboard", folder, "--columns", "pgd", "--format", "latex").stdout
    )
    wrong = one_line(call("leaderboard", folder, "--columns", "clean,wrost"))
    assert wrong.startswith(
        "--columns: no column 'wrost' (did you mean 'worst' or 'worst_n'?); there are: benchmark, run, seed"
    )
    assert "expected names of columns" in one_line(call("leaderboard", folder, "--columns", " , "))


# Check --------------------------------------------------------------------------------------------------


def test_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    folder, reference = results(tmp_path), tmp_path / "reference.csv"
    reference.write_text(call("leaderboard", str(folder), "--format", "csv").stdout)
    held = call("check", str(folder), "--against", str(reference))
    assert held.exit_code == 0
    assert "still holds" in held.stdout
    results(tmp_path, status="crashed")
    broken = call("check", str(folder), "--against", str(reference))
    assert broken.exit_code == 2, "nothing fell, but something cannot be compared"
    head, *lines = broken.stdout.splitlines()
    assert head.split() == ["run", "column", "reference", "measured", "problem"]
    assert [line.split()[3] for line in lines] == ["pgd", "worst"]
    assert all(line.endswith("the cell is empty (pgd: crashed: boom)") for line in lines)
    assert "cannot be read" in one_line(call("check", str(folder), "--against", str(tmp_path / "none.csv")))


def test_check_tells_a_fall_from_an_improvement_and_reports_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    measured, reference, report = tmp_path / "m.csv", tmp_path / "r.csv", tmp_path / "check.xml"
    reference.write_text("run,seed,n,clean,pgd\na,0,1000,90,40\nb,0,1000,90,40\n")

    def check(*rows: str, more: Sequence[str] = ()) -> Any:
        measured.write_text("\n".join(["run,seed,n,clean,pgd", *rows]) + "\n")
        return call("check", str(measured), "--against", str(reference), "--junit", str(report), *more)

    better = check("a,0,1000,90,60", "b,0,1000,90,40")
    assert better.exit_code == 0
    assert "interval of the difference: +1" in better.stdout
    fell = check("a,0,1000,90,60", "b,0,1000,90,20")
    assert fell.exit_code == 1
    suite = ElementTree.parse(report).getroot()[0]
    assert {k: suite.get(k) for k in ("tests", "failures", "errors")} == {
        "tests": "2", "failures": "1", "errors": "0",
    }  # fmt: skip
    a, b = suite
    assert (a.get("name"), b.get("name")) == ("a (seed 0)", "b (seed 0)")
    assert "better than the reference" in (a.findtext("system-out") or "")
    assert str(b[-1].get("message")).startswith("pgd 20.00, the reference 40.00: 95 %")
    assert "| b (seed 0) | pgd | 40.00 | 20.00 | **fell**: 95 %" in (tmp_path / "step.md").read_text()
    assert check("a,0,1000,90,40").exit_code == 2
    (tmp_path / "spread.csv").write_text(
        "kind,change,run,seed,n,clean,pgd\n"
        + "".join(f"machine,m{i},b,0,1000,90,{p}\n" for i, p in enumerate((30, 40, 50)))
    )
    wider = check("a,0,1000,90,40", "b,0,1000,90,20")  # t_2 x 10 points x sqrt(2): 60.9 of them are allowed
    assert wider.exit_code == 0, wider.output
    assert check("a,0,1000,90,20", "b,0,1000,90,20").exit_code == 1, "of a no machine was seen to move it"
    assert "no spread over seeds" in one_line(check("a,1,1000,90,40", "b,1,1000,90,40", more=["--seeds"]))


# Run and evaluate ---------------------------------------------------------------------------------------


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the verbs pass on; in place of work, a stored leaderboard comes back."""
    seen: dict[str, Any] = {"folder": results(tmp_path)}

    def work(what: Any, **arguments: Any) -> pd.DataFrame:
        seen.update(what=what, **arguments)
        return tabulate(seen["folder"])

    monkeypatch.setattr(benchmark, "run_benchmark", work)
    monkeypatch.setattr(evaluation, "evaluate", work)
    monkeypatch.delenv("RBS_DATA", raising=False)
    return seen


def test_run_passes_its_options_on(seen: dict[str, Any], tmp_path: Path) -> None:
    words = [
        "run",
        "x.yaml",
        "--out",
        "o",
        "--set",
        "train.epochs=2",
        "--set",
        "a=b",
        "--only",
        "a",
        "--limit",
        "9",
    ]
    result = call(*words, "--seeds", "0, 2", "--device", "cpu", "--data-root", str(tmp_path), "--quiet")
    assert result.exit_code == 0
    assert seen["what"] == Path("x.yaml")
    assert (seen["out"], seen["changes"], seen["only"]) == (Path("o"), ["train.epochs=2", "a=b"], ["a"])
    assert (seen["seeds"], seen["device"], seen["data_root"], seen["limit"]) == ([0, 2], "cpu", tmp_path, 9)
    assert "25.0" in result.stdout
    assert result.stderr == "\nwritten: o/tiny/leaderboard.csv, leaderboard_seeds.csv, leaderboard.md\n"


def test_run_alone_leaves_all_to_the_config(seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBS_DATA", "somewhere")
    assert call("run", "x.yaml").exit_code == 0
    assert (seen["out"], seen["changes"], seen["only"], seen["seeds"]) == (Path("results"), [], [], None)
    assert (seen["device"], seen["data_root"], seen["limit"]) == ("auto", Path("somewhere"), None)


def test_a_gap_in_a_row_that_was_worked_on_is_exit_code_1(seen: dict[str, Any], tmp_path: Path) -> None:
    results(tmp_path, status="crashed")
    result = call("run", "x.yaml", "--quiet")
    assert result.exit_code == 1
    assert "a (seed 0): pgd: crashed: boom" in result.stdout
    hidden = call("run", "x.yaml", "--only", "b", "--quiet")
    assert hidden.exit_code == 0
    assert "boom" not in hidden.stdout, "what was not asked for is not shown"
    assert call("evaluate", "m:f", "--dataset", "digits").exit_code == 1


def test_evaluate_passes_its_options_on(seen: dict[str, Any]) -> None:
    words = [
        "evaluate",
        "m:f",
        "--dataset",
        "digits",
        "--attacks",
        "fgsm, pgd",
        "--norm",
        "l2",
        "--eps",
        "8/255",
    ]
    result = call(
        *words, "--weights", "w.safetensors", "--seed", "3", "--set", "data.x=1", "--format", "csv", "-q"
    )
    assert result.exit_code == 0
    assert next(csv.DictReader(io.StringIO(result.stdout)))["pgd"] == "25.0"
    assert result.stderr == ""
    assert (seen["what"], seen["dataset"], seen["attacks"]) == ("m:f", "digits", ["fgsm", "pgd"])
    assert (seen["norm"], seen["eps"], seen["weights"]) == ("l2", 8 / 255, Path("w.safetensors"))
    assert (seen["seed"], seen["changes"], seen["out"]) == (3, ["data.x=1"], None)


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("2", 2.0), ("1e-1", 0.1), (".inf", math.inf)])
def test_eps_is_read_as_in_a_config(seen: dict[str, Any], text: str, value: float) -> None:
    assert call("evaluate", "m:f", "--eps", text).exit_code == 0
    assert seen["eps"] == value
    assert (seen["attacks"], seen["suite"]) == (None, None)  # which is standard, or a zoo network's own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "x.yaml", "--seeds", "0,x"], "--seeds: expected whole numbers such as 0,1,2, got '0,x'"),
        (["run", "x.yaml", "--seeds", ""], "--seeds: expected whole numbers such as 0,1,2, got ''"),
        (["evaluate", "m:f", "--eps", "big"], "--eps: expected a number >= 0 such as 8/255, got 'big'"),
        (["evaluate", "m:f", "--eps", "-1"], "--eps: expected a number >= 0 such as 8/255, got '-1'"),
        (["evaluate", "m:f", "--eps", ".nan"], "--eps: expected a number >= 0 such as 8/255, got '.nan'"),
        (
            ["evaluate", "m:f", "--suite", "standard", "--attacks", "fgsm"],
            "--attacks and --suite: expected one of them, got both",
        ),
        (["evaluate", "m:f", "--format", "x"], "--format: expected table, csv, markdown, latex, got 'x'"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    seen: dict[str, Any], words: list[str], message: str
) -> None:
    assert one_line(call(*words)) == message
    assert "what" not in seen


def test_a_users_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UserError("x.yaml:3: train.epochs:\n expected a number")

    monkeypatch.setattr(benchmark, "run_benchmark", fail)
    assert one_line(call("run", "x.yaml")) == "x.yaml:3: train.epochs: expected a number"


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run_benchmark", interrupt)
    result = call("run", "x.yaml")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; the same command goes on from here\n"


def test_a_missing_config_is_one_line(tmp_path: Path) -> None:
    assert (
        one_line(call("run", str(tmp_path / "x.yaml"), "--quiet")) == f"{tmp_path / 'x.yaml'}: no such file"
    )
    path = tmp_path / "y.yaml"
    path.write_text("name: y\ntrain: {epochs: many}\n")
    message = one_line(call("run", str(path), "--quiet"))
    assert message.startswith(f"{path}:")
