"""The command ``study``: its list and help, its files, and its refusals of one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from robustbench_sparse.cli.main import app
from robustbench_sparse.studies import STUDIES

SMALL = {
    "serw": ["walkers=50", "steps=5", "perturbations=[none,I,II:pareto]"],
    "clip_1d": ["steps=3", "lams=[0,0.1]", "seeds=2", "width=4"],
    "bregman_tv": ["size=12", "iterations=3", "inner=5"],
}
COLUMNS = {
    "serw": "theorem,model,noise,dimension,delta,seed,walkers,quantity,n,simulated,low,high,exact,limit",
    "clip_1d": "lambda,seed,train_mse,truth_mse,lipschitz,lipschitz_pairs",
    "bregman_tv": "k,seed,residual,error,total_variation,bregman_distance,gap,noise_norm",
}
STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


def small(name: str, out: Path, *more: str) -> Result:
    return call(name, "--out", out, *(word for s in SMALL[name] for word in ("--set", s)), *more)


def refusal(result: Result) -> str:
    """The message of a refused command: exit code 2, one line on stderr, nothing on stdout."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip()


def test_help_has_examples_and_loads_nothing_heavy() -> None:
    result = call("--help")
    assert result.exit_code == 0
    examples = result.stdout.partition("Examples:")[2]
    assert all(f"robustbench-sparse study {name} --out" in examples for name in SMALL)
    assert "perturbations=[none,I]" in examples  # brackets are no markup
    assert max(map(len, result.stdout.splitlines())) <= 80
    program = (
        "import sys; from typer.testing import CliRunner; from robustbench_sparse.cli.main import app\n"
        "assert CliRunner().invoke(app, ['study', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'pandas', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_without_a_name_it_lists_the_studies_with_their_settings() -> None:
    result = call()
    assert result.exit_code == 0
    heads = [line.partition(": ") for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert [name for name, _, _ in heads] == [*STUDIES]
    assert all(text for _, _, text in heads)
    assert "    walkers: 50000\n" in result.stdout
    assert "    lams: [0, 0.003, 0.01, 0.03, 0.1]\n" in result.stdout
    assert "    image: null\n" in result.stdout


@pytest.mark.parametrize(("name", "kind"), [("serw", "svg"), ("clip_1d", "pdf"), ("bregman_tv", "png")])
def test_a_study_writes_a_table_and_a_figure_the_same_every_time(
    name: str, kind: str, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folder"
    result = small(name, out, "--figure", kind, "--seed", "3", "-q")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip()
    assert result.stderr == f"\nwritten: {out / name}.csv, {out / name}.{kind}\n"
    assert sorted(p.name for p in out.iterdir()) == sorted([f"{name}.csv", f"{name}.{kind}"])
    text = (out / f"{name}.csv").read_text()
    assert text.partition("\n")[0] == COLUMNS[name]
    table = pd.read_csv(out / f"{name}.csv")
    assert len(table) >= 4
    assert table["seed"].min() == 3
    drawn = (out / f"{name}.{kind}").read_bytes()
    assert drawn.startswith(STARTS[kind])
    assert len(drawn) > 5000
    again = small(name, tmp_path / "again", "--figure", kind, "--seed", "3", "-q")
    assert again.stdout == result.stdout
    assert (tmp_path / "again" / f"{name}.csv").read_text() == text
    assert (tmp_path / "again" / f"{name}.{kind}").read_bytes() == drawn
    other = small(name, tmp_path / "other", "--figure", kind, "--seed", "4", "-q")
    assert other.stdout != result.stdout


def test_progress_goes_to_stderr(tmp_path: Path) -> None:
    result = small("bregman_tv", tmp_path)
    assert "bregman_tv: 3 iterations in " in result.stderr
    assert "iterations in" not in result.stdout


def test_without_matplotlib_there_is_a_table_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = small("bregman_tv", tmp_path, "-q")
    assert result.exit_code == 0
    note, _, written, *_ = result.stderr.split("\n")
    assert note == (
        "no figure: it needs matplotlib, which comes with the extra 'studies' of robustbench_sparse"
    )
    assert written == f"written: {tmp_path / 'bregman_tv.csv'}"
    assert [p.name for p in tmp_path.iterdir()] == ["bregman_tv.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clip1d"], "study clip1d: no such study (did you mean 'clip_1d'?); there are: serw, clip_1d, bregman_tv"),
        (["serw", "--set", "walker=3"], "study serw: walker: unknown setting of study 'serw' (did you mean"),
        (["serw", "--set", "walkers=many"], "study serw: walkers: expected a whole number, got 'many'"),
        (["serw", "--set", "walkers=1"], "study serw: walkers: expected an integer in [2, 10^8], got 1"),
        (["serw", "--set", "name=clip_1d"], "study serw: name: not a setting"),
        (["serw", "--set", "walkers"], "--set walkers: expected key.path=value"),
        (["bregman_tv", "--figure", "jpeg"], "--figure: expected png, svg, pdf, got 'jpeg'"),
        (["bregman_tv", "--set", "image=nowhere.png"], "image: nowhere.png: no such file"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert refusal(call(*words, "--out", out)).startswith(message)
    assert not out.exists()


def test_a_folder_is_needed_and_nothing_in_its_way(tmp_path: Path) -> None:
    assert refusal(call("serw")) == "study serw: --out: expected a folder"
    file = tmp_path / "file"
    file.write_text("mine")
    assert refusal(small("serw", file)) == f"--out {file}: no folder"
    assert refusal(small("serw", file / "below")) == f"--out {file / 'below'}: {file} is no folder"
    assert file.read_text() == "mine"
