"""Texts that would steer a terminal, run in a spreadsheet or pass for markup go out as texts."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from robustbench_sparse.cli import main as cli
from robustbench_sparse.foundation import texts
from robustbench_sparse.foundation.progress import RichProgress
from robustbench_sparse.reporting import comparison, curve, history
from robustbench_sparse.reporting import explain as reading
from robustbench_sparse.reporting import layers as layer_tables
from robustbench_sparse.reporting.leaderboard import aggregate
from robustbench_sparse.reporting.reference import Difference, check
from robustbench_sparse.reporting.reference import text_of as differences_text
from robustbench_sparse.reporting.tables import show, text_of, to_csv
from robustbench_sparse.runs import manifest
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.trained import Trained
from tests.helpers.sealing import sealed

FORMULA = "=cmd|' /C calc'!A0"
ESCAPES = "\x1b[2J\x1b]0;owned\x07 \u202egnp.exe\x9b31m \x00"
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def leaderboard(**changes: Any) -> pd.DataFrame:
    """One row of the columns of ``tabulate``."""
    row: dict[str, Any] = {"benchmark": "tiny", "run": "a", "seed": 0, "dataset": "digits", "model": "mlp()"}
    row |= {"defenses": "", "precision": "fp32", "n": 1000, "clean": 90.0, "clean_lo": 88.0, "clean_hi": 92.0}
    row |= {"rank": 1, "rank_seeds": 1, "verdict": "believable", "flags": "", "weight_sparsity": 10.0}
    row |= {"asked": "", "status": "ok", "run_id": "a-0", "commit": "c", **changes}
    return pd.DataFrame([row]).astype(dict.fromkeys(("seed", "n", "rank", "rank_seeds"), "Int64"))


# CSV ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        (FORMULA, f"'{FORMULA}"),
        ("@SUM(1)", "'@SUM(1)"),
        ("+1+cmd", "'+1+cmd"),
        ("-2+3", "'-2+3"),
        ("-12 +5", "'-12 +5"),
        (" =1", "' =1"),
        ('"=1"', '\'"=1"'),
        ("'=1", "''=1"),
        ("\t=1", "' =1"),
        ("\r\n=1", "' =1"),
        ("\ufeff=1", "'\ufeff=1"),
        ("\uff1d1", "'\uff1d1"),
        ("a; =1", "a;' =1"),
        ("-3.5", "-3.5"),
        ("+5", "+5"),
        ("-1e-3", "-1e-3"),
        ("a=b; c-d", "a=b; c-d"),
        ("'quoted'", "'quoted'"),
        ("", ""),
    ],
)
def test_a_cell_that_a_spreadsheet_would_run_begins_with_an_apostrophe(text: str, cell: str) -> None:
    assert texts.csv_cell(text) == cell
    assert texts.csv_text(cell) == texts.printable(text)


def test_numbers_stay_numbers() -> None:
    table = pd.DataFrame(
        {"gap": [-1.5, math.nan], "n": pd.array([-3, None], dtype="Int64"), "ok": [True, False]}
    )
    table["name"] = ["-x", None]
    assert texts.to_csv(table).splitlines() == ["gap,n,ok,name", "-1.5,-3,True,'-x", ",,False,"]
    assert table["name"][0] == "-x"  # the table itself is left as it is


@pytest.mark.parametrize("column", ["benchmark", "run", "dataset", "model", "defenses", "flags", "status"])
def test_no_text_of_a_leaderboard_runs(column: str) -> None:
    table = leaderboard(**{column: FORMULA})
    for text in (to_csv(table), to_csv(aggregate(table)), text_of([table, table], "csv")):
        (row, *_) = csv.DictReader(io.StringIO(text))
        assert [v for v in row.values() if v.startswith(tuple("=+-@"))] == []
        assert FORMULA in row[column]


@pytest.mark.parametrize("column", ["asked", "run_id", "commit"])
def test_nor_does_one_that_is_not_averaged(column: str) -> None:
    (row,) = csv.DictReader(io.StringIO(to_csv(leaderboard(**{column: FORMULA}))))
    assert row[column] == f"'{FORMULA}"


def test_a_written_leaderboard_is_still_a_reference_of_itself(tmp_path: Path) -> None:
    table = leaderboard(run="=a;-b", dataset=FORMULA).rename(columns=lambda c: c.replace("clean", "-clean"))
    for name, each in (("leaderboard.csv", table), ("seeds.csv", aggregate(table))):
        path = tmp_path / name
        path.write_text(to_csv(each))
        head, row = path.read_text().splitlines()
        assert "'-clean" in head
        assert ",-clean" not in head
        assert "'=a;'-b" in row
        assert check(table, path) == []
        worse = [d.run for d in check(table.assign(**{"-clean": 10.0}), path)]
        assert worse == ["=a;-b (seed 0)" if name == "leaderboard.csv" else "=a;-b"]


def test_layers_and_histories(tmp_path: Path) -> None:
    """What training leaves, read back by ``history``, in its own CSV."""
    runs = [{"run_id": "a-0", "run": FORMULA, "seed": 0}]
    manifest = {"name": "t", "dataset": "d", "attacks": [], "runs": runs, "published": {}}
    manifest["threat"] = {"norm": "linf", "eps": 0.1}
    (tmp_path / "benchmark.json").write_text(json.dumps(manifest))
    home = RunFolder(path=tmp_path / "runs" / "a-0", run_id="a-0", label="a", seed=0, facts={})
    home.path.mkdir(parents=True)
    row = {"stage": 0, "epoch": 0, "name": "=net", "weights": 10, "zero_weights": 1, "l1_norm": -1.0}
    epoch = {"stage": 0, "epoch": 0, "train_accuracy": 1.0, "val_accuracy": 1.0, "l1_norm": 1.0}
    home.store(Trained(layers=[row], history=[{**epoch, "weight_sparsity": 5.0}], diverged="nan"))
    assert pd.read_csv(home.path / "layers.csv")["name"].tolist() == ["'=net"]
    sealed(tmp_path)
    for options in (["--layers"], ["--layers", "--seeds"], []):
        done = CliRunner().invoke(cli.app, ["history", str(tmp_path), *options, "--format", "csv"])
        assert done.exit_code == 0, done.output
        (found,) = csv.DictReader(io.StringIO(done.output))
        assert found["run"] == f"'{FORMULA}"
        assert found.get("layer", "'=net") == "'=net"
    assert float(found["l1_norm_mean"]) == 1.0


COUNTS: dict[str, Any] = {
    **{f"{k}_sparsity": 10.0 for k in ("weight", "linear", "channel", "kernel", "row")},
    **{"parameters": 10, "nonzero_parameters": 9, "asked": [], "macs": 1},
}


def counts(name: str) -> dict[str, Any]:
    layer = {
        "name": name,
        "kind": "Linear",
        "shape": [5, 2],
        "weights": 10,
        "zero_weights": 1,
        "l1_norm": 1.0,
    }
    layer |= dict.fromkeys(("channels", "zero_channels", "kernels", "zero_kernels", "macs", "sparse_macs"), 0)
    return {**COUNTS, "layers": [{**layer, "rows": 5, "zero_rows": 0}]}


def test_sparsity_in_every_format() -> None:
    found = [*csv.DictReader(io.StringIO(layer_tables.show_counts(counts(FORMULA), "csv")))]
    assert [row["name"] for row in found] == [f"'{FORMULA}", "total"]
    assert "| a\\|b&lt;i&gt; |" in layer_tables.show_counts(counts("a|b<i>"), "markdown")
    assert UNSEEN.search(layer_tables.show_counts(counts(ESCAPES), "table")) is None
    wide = "[red]" * 12 + "x"
    (row,) = (
        line for line in layer_tables.show_counts(counts(wide), "table").splitlines() if "Linear" in line
    )
    assert row.split()[:5] == [wide, "Linear", "5x2", "10", "10.00"]


def test_the_report_of_shrinking() -> None:
    size = {"parameters": 4, "macs": 4, "sparse_macs": 4, "bytes": 4}
    one = {"batch": 1, "device": "=gpu", "threads": 0, "before_ms": 1.0, "after_ms": 1.0}
    proof = {"noise": False, "images": 1, "difference": 0.0, "allowed": 0.0}
    report = {"before": size, "after": size, "latency": [one], "removed": {ESCAPES: (2, 1)}, "proof": proof}
    report |= {"onnx": None, "notes": [ESCAPES]}
    assert UNSEEN.search(layer_tables.show_report(report, "table")) is None


def test_comparisons_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame([{"attack": FORMULA, "difference": -1.5, "flips": "-12 +5"}])
    monkeypatch.setattr(comparison, "compare_runs", lambda *_: table)
    monkeypatch.setattr(curve, "curve", lambda *_: table)
    for arguments in (["compare", "a", "b"], ["curve", "a", "--attack", "cw"]):
        done = CliRunner().invoke(cli.app, [*arguments, "--format", "csv"])
        assert done.output.splitlines()[1] == f"'{FORMULA},-1.5,'-12 +5"


# Markdown and LaTeX -------------------------------------------------------------------------------------


def test_markdown_shows_texts_as_texts() -> None:
    hostile = "<script>alert(1)</script> [a](javascript:b) `c` & d | e \\ f\ng\x1b"
    escaped = (
        "&lt;script&gt;alert(1)&lt;/script&gt; \\[a\\](javascript:b) \\`c\\` &amp; d \\| e \\\\ f g\\\\x1b"
    )
    table = leaderboard(
        **dict.fromkeys(("benchmark", "run", "dataset", "model", "defenses", "status"), hostile)
    )
    text = text_of([table.assign(flags=hostile)], "markdown")
    assert text.count(escaped) == 7
    lines = text.splitlines()
    assert lines[0] == f"## {escaped}"
    assert lines[2].startswith("Percent correct on 1000 images of &lt;script&gt;")
    (head, rule, row) = (re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|"))
    assert len(head) == len(rule) == len(row)
    assert "90.0 [88.0, 92.0]" in text  # an interval's brackets are ours


def test_latex_has_no_breaks_and_no_controls() -> None:
    table = leaderboard(benchmark="a\n\\input{x}", run="[1cm]\n\x1b_<", status="failed:\r\n\\input{y}")
    lines = text_of([table], "latex").splitlines()
    assert lines[0].startswith("% ")
    assert r"\input{y}" in lines[0]
    assert lines[1].startswith(r"% a \input{x}: Percent")
    (row,) = (line for line in lines if line.startswith("{[}"))
    assert row.startswith(r"{[}1cm] \textbackslash{}x1b\_\textless{} & 90.0 [88.0, 92.0] & ")
    assert [line for line in lines if "input" in line and not line.startswith("%")] == []


# The terminal -------------------------------------------------------------------------------------------


def test_what_is_printable() -> None:
    assert texts.printable("a\tb\r\nc\x0bd\u2028e") == "a b c d e"
    assert texts.printable("\x1b[0m\x9b\u202e\ud800") == r"\x1b[0m\x9b\u202e\ud800"
    assert texts.printable("Größe ≥ 3 ± 中") == "Größe ≥ 3 ± 中"
    assert texts.printable_lines("a\x07\nb\n") == "a\\x07\nb\n"
    texts.printable("\udcff").encode()


def test_tables_and_differences_do_not_steer_a_terminal() -> None:
    names = dict.fromkeys(("benchmark", "run", "dataset", "flags", "status"), ESCAPES + "[red]:bug:")
    out = io.StringIO()
    table = leaderboard(**names).rename(columns=lambda c: c.replace("clean", "cl\x1bean"))
    show(Console(file=out, width=100, force_terminal=True, color_system=None), [table])
    assert UNSEEN.search(out.getvalue()) is None
    assert out.getvalue().count("[red]:bug:") >= 4
    worse = differences_text(check(leaderboard(run=ESCAPES, clean=10.0), leaderboard(run=ESCAPES)))
    assert UNSEEN.search(worse) is None
    assert len(worse.splitlines()) == 2
    named = Difference(run="a", column=ESCAPES, reference=1.0, measured=2.0, problem="b\nc")
    assert UNSEEN.search(differences_text([named])) is None
    assert differences_text([named]).endswith("b c")


def test_histories_do_not_steer_a_terminal() -> None:
    row = {"run": ESCAPES, "passed": 1, **{f"{c}_mean": 1.0 for c in history.SHOWN}}
    text = history.text_of(pd.DataFrame([{**row, **{f"{c}_std": 1.0 for c in history.SHOWN}}]))
    assert UNSEEN.search(text) is None
    head, line = text.splitlines()
    assert len(head) == len(line)  # as wide as what is shown


def test_comparisons_do_not_steer_a_terminal() -> None:
    row = {
        "attack": ESCAPES,
        "n": 2,
        "first": 50.0,
        "second": 0.0,
        "difference": 50.0,
        "low": -1.0,
        "high": 99.0,
    }
    table = pd.DataFrame([{**row, "p": 1.0, "lost": 1, "won": 0, "flips": "-0"}])
    text = comparison.text_of(table, ESCAPES, "b\nc")
    assert UNSEEN.search(text) is None
    assert "second b c\n" in text


@pytest.mark.parametrize("command", ["explain", "curve"])
def test_reading_commands_do_not_steer_a_terminal(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.DataFrame([{"eps": 0.1, "accuracy": 5.0, "lo": 1.0, "hi": 9.0, "n": 3}])
    rows.attrs.update(run=ESCAPES, attack="cw", norm="linf", eps=0.1)
    monkeypatch.setattr(curve, "curve", lambda *_: rows)
    monkeypatch.setattr(manifest, "check_run_folder", lambda run: "a")
    monkeypatch.setattr(manifest, "read_manifest", lambda folder: {})
    monkeypatch.setattr(reading, "explain", lambda *_, **__: f"{ESCAPES}\nsecond\n")
    options = ["--attack", "cw"] if command == "curve" else []
    done = CliRunner().invoke(cli.app, [command, str(tmp_path), *options])
    assert done.exit_code == 0, done.output
    assert "gnp.exe" in done.output
    assert UNSEEN.search(done.output) is None


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_and_notes_take_no_markup(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=terminal, color_system=None)
    hostile = "[red]a[/red]:bug:\x9b31m\u202e"
    shown = r"[red]a[/red]:bug:\x9b31m\u202e"
    with RichProgress(console) as bars:
        bars.note(hostile)
        task = bars.start(hostile, 2, f"u{hostile}")
        task.advance(1, f"i{hostile}")
        bars._progress.refresh()
        task.close()
    text = out.getvalue()
    assert "\x9b" not in text
    assert "\u202e" not in text
    for part in (shown, f"u{shown}", f"i{shown}"):
        assert part in text
