"""A stored number is served for the network, code, images and settings it was computed from, and for nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustbench_sparse import evaluate, run_benchmark
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.leaderboard import tabulate
from robustbench_sparse.runs.names import RECORD
from tests.helpers import forks, linear_nets
from tests.helpers.linear_nets import ATTACKS, DARKENED, EPS, LIMIT, NEGATED, truth, write_net

JUDGED: dict[str, Any] = {"dataset": "digits", "attacks": ATTACKS, "eps": EPS, "limit": LIMIT}


def judge(folder: Path, target: Any, **options: Any) -> dict[str, float]:
    row = evaluate(target, **{**JUDGED, "out": folder, "expect_clean": 0, **options}).iloc[-1]
    return {name: float(row[name]) for name in ("clean", "fgsm")}


def in_a_new_process(folder: Path, target: str) -> dict[str, float]:
    """As a user does it: one command after another."""
    words = ["evaluate", target, "--dataset", "digits", "--attacks", "fgsm", "--eps", str(EPS)]
    words += ["--limit", str(LIMIT), "--out", "out", "--format", "csv", "-q", "--expect-clean", "0"]
    done = forks.run(words, cwd=folder)
    assert done.returncode == 0, done.stderr
    last = pd.read_csv(folder / "out" / "leaderboard.csv").iloc[-1]
    return {name: float(last[name]) for name in ("clean", "fgsm")}


# The network ----------------------------------------------------------------------------------------------


def test_an_edited_forward_pass_is_judged_anew(tmp_path: Path) -> None:
    write_net(tmp_path, "mynet")
    assert in_a_new_process(tmp_path, "mynet:net") == pytest.approx(truth(), abs=1e-3)
    write_net(tmp_path, "mynet", NEGATED)
    assert in_a_new_process(tmp_path, "mynet:net") == pytest.approx(truth(sign=-1), abs=1e-3)
    assert truth(sign=-1)["clean"] < 10 < 80 < truth()["clean"], "or the test shows nothing"


def test_two_networks_of_one_name_are_two_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path, "net_a")
    write_net(tmp_path, "net_b", NEGATED)
    assert judge(tmp_path / "out", "net_a:net") == pytest.approx(truth())
    assert judge(tmp_path / "out", "net_b:net") == pytest.approx(truth(sign=-1))
    table = tabulate(tmp_path / "out")
    assert len(table) == 2
    assert table["run"].nunique() == 2
    assert table["clean"].tolist() == pytest.approx([truth()["clean"], truth(sign=-1)["clean"]])


class Scaled(nn.Module):
    """A number that is no tensor belongs to what the network computes."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.linear, self.sign = linear_nets.trained(), sign

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * self.linear(x.flatten(1))


def test_what_a_network_computes_counts_not_only_its_tensors(tmp_path: Path) -> None:
    assert judge(tmp_path, Scaled(1.0)) == pytest.approx(truth())
    assert judge(tmp_path, Scaled(-1.0)) == pytest.approx(truth(sign=-1))


def test_the_same_network_is_not_judged_twice(tmp_path: Path) -> None:
    judge(tmp_path, Scaled(1.0))
    stored = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("outcomes/*")}
    assert len(stored) == 4
    judge(tmp_path, Scaled(1.0))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("outcomes/*")} == stored


def test_other_images_or_attacks_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    full = judge(tmp_path, Scaled(1.0))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for change in ({"limit": 10}, {"attacks": {"pgd": "pgd"}}, {"eps": 0.01}):
        with pytest.raises(UserError, match="choose another --out"):
            judge(tmp_path, Scaled(1.0), **change)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert judge(tmp_path, Scaled(1.0)) == full


# Code of one's own ----------------------------------------------------------------------------------------

PENALTY = """
from dataclasses import dataclass

from defenses.base import Defense
import my_strength


@dataclass(frozen=True, kw_only=True)
class Penalty(Defense):
    def penalty(self, s):
        return my_strength.strength() * sum(w.square().sum() for w in s.model.parameters())
"""
STRENGTH = "def strength():\n    return {strength}\n"


def benchmark_file(folder: Path, **changes: Any) -> Path:
    raw = {
        "name": "own",
        "data": {"name": "digits"},
        "threat": {"norm": "linf", "eps": EPS},
        "attacks": ATTACKS,
        "evaluation": {"limit": LIMIT},
        "model": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 2, "batch_size": 256, "selection": "last"},
        "runs": {"own": {"defenses": [{"name": "my_penalty:Penalty"}]}},
        **changes,
    }
    path = folder / "own.yaml"
    path.write_text(json.dumps(raw))
    return path


def run_it(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["run", "own.yaml", "--out", "results", *more]
    return forks.run(words, cwd=folder, env={**os.environ, "COLUMNS": "200"})


def test_a_changed_plug_in_is_trained_anew_and_says_so(tmp_path: Path) -> None:
    learns = {"epochs": 8, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.2}, "selection": "last"}
    benchmark_file(tmp_path, train=learns)
    (tmp_path / "my_penalty.py").write_text(PENALTY)
    (tmp_path / "my_strength.py").write_text(STRENGTH.format(strength=0.0))
    assert run_it(tmp_path).returncode == 0
    weak = pd.read_csv(tmp_path / "results/own/leaderboard.csv")
    # In a module that the plug-in imports: its own source stays as it was.
    (tmp_path / "my_strength.py").write_text(STRENGTH.format(strength=1.0))
    done = run_it(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the code of my_penalty:Penalty has changed since it was trained: trained anew" in done.stderr
    strong = pd.read_csv(tmp_path / "results/own/leaderboard.csv")
    assert strong["run_id"][0] != weak["run_id"][0]
    assert strong["clean"][0] < weak["clean"][0] - 20, "so strong a penalty leaves nothing to learn"
    again = run_it(tmp_path)
    assert "trained anew" not in again.stderr


ATTACK = """
from dataclasses import dataclass

from attacks.base import Attack


@dataclass(frozen=True, kw_only=True)
class Push(Attack):
    def run(self, model, x, y, threat, random):
        return {candidate}
"""


def test_an_outcome_of_a_changed_attack_is_judged_anew(tmp_path: Path) -> None:
    benchmark_file(tmp_path, runs={"natural": {}}, attacks={"push": {"name": "my_attack:Push"}})
    (tmp_path / "my_attack.py").write_text(ATTACK.format(candidate="x"))
    assert run_it(tmp_path).returncode == 0
    first = pd.read_csv(tmp_path / "results/own/leaderboard.csv").iloc[0]
    assert first["push"] == first["clean"]
    (tmp_path / "my_attack.py").write_text(ATTACK.format(candidate="x.mul(float('nan'))"))
    assert run_it(tmp_path).returncode == 1
    second = pd.read_csv(tmp_path / "results/own/leaderboard.csv").iloc[0]
    assert "nonfinite" in second["status"]
    assert pd.isna(second["push"])


# Trials ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trials")
    benchmark_file(folder, runs={"natural": {}, "other": {"train": {"epochs": 1}}}, evaluation={})
    assert run_it(folder).returncode == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("trial", "name"),
    [
        (["--limit", "50"], "own@limit=50"),
        (
            ["--set", "train.epochs=1", "--only", "natural", "--limit", "20"],
            "own@train.epochs=1,evaluation.limit=20",
        ),
        (["--seeds", "0,1", "--only", "other"], "own@seeds=0,1"),
        (["--limit", "9", "--variant", "mine"], "own@mine"),
    ],
)
def test_a_trial_leaves_the_benchmark_as_it_is(trained: Path, trial: list[str], name: str) -> None:
    before = contents(trained / "results/own")
    done = run_it(trained, *trial)
    assert done.returncode == 0, done.stderr
    assert contents(trained / "results/own") == before
    table = pd.read_csv(trained / "results" / name / "leaderboard.csv")
    assert set(table["benchmark"]) == {name}
    assert f"written: results/{name}/leaderboard.csv" in done.stderr


def test_a_trial_takes_over_what_is_trained(trained: Path) -> None:
    run_it(trained, "--limit", "30", "--only", "natural")
    (own,) = (trained / "results/own/runs").glob("natural-s0-*")
    taken = trained / "results/own@limit=30/runs" / own.name
    assert (taken / "model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes()
    assert (taken / "training.json").read_bytes() == (own / "training.json").read_bytes()
    row = pd.read_csv(trained / "results/own@limit=30/leaderboard.csv").set_index("run").loc["natural"]
    stored = pd.read_csv(own / "outcomes/fgsm.csv").set_index("index")
    few = pd.read_csv(taken / "outcomes/fgsm.csv").set_index("index")
    assert len(few) == 30
    pd.testing.assert_series_equal(few["adv_correct"], stored.loc[few.index, "adv_correct"])
    assert row["fgsm"] == pytest.approx(100 * few["adv_correct"].mean(), abs=1e-3)


def test_a_change_without_effect_is_no_trial(trained: Path) -> None:
    before = contents(trained / "results")
    assert run_it(trained, "--set", "threads=1", "--set", "train.epochs=2").returncode == 0
    after = contents(trained / "results")
    assert after.keys() == before.keys()


def test_a_change_may_complete_a_file_that_is_none_without_it(tmp_path: Path) -> None:
    benchmark_file(tmp_path, runs={"natural": {}}, train={"batch_size": 256, "selection": "last"})
    assert "the key 'epochs' is missing" in run_it(tmp_path).stderr
    done = run_it(tmp_path, "--set", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert "written: results/own@train.epochs=1/leaderboard.csv" in done.stderr


def test_a_changed_file_may_add_and_may_not_change(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "results", tmp_path / "results")
    runs: dict[str, Any] = {"natural": {}, "other": {"train": {"epochs": 1}}}
    kept = {p: p.read_bytes() for p in (tmp_path / "results/own/runs").rglob("outcomes/*.csv")}
    benchmark_file(
        tmp_path, runs={**runs, "third": {"train": {"epochs": 1, "batch_size": 64}}}, evaluation={}
    )
    assert run_it(tmp_path).returncode == 0
    assert {p: p.read_bytes() for p in kept} == kept
    assert len(pd.read_csv(tmp_path / "results/own/leaderboard.csv")) == 3
    for change, what in (
        ({"runs": {"natural": {}}}, "runs.other: there, not here"),
        (
            {"attacks": {"fgsm": {"name": "fgsm", "threat": {"eps": 0.01}}}},
            "attacks.fgsm.threat.eps: 0.06 there, 0.01",
        ),
        ({"evaluation": {"limit": 5}}, "evaluation.limit: None there, 5 here"),
    ):
        before = contents(tmp_path / "results")
        benchmark_file(tmp_path, **{"runs": {**runs, "third": {"train": {"epochs": 1, "batch_size": 64}}},
                                    "evaluation": {}, **change})  # fmt: skip
        done = run_it(tmp_path)
        assert done.returncode == 2
        assert what in done.stderr
        assert "--variant NAME" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert contents(tmp_path / "results") == before


# Files that were changed ----------------------------------------------------------------------------------


def stored_run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "results/own", tmp_path / "own")
    (run,) = (tmp_path / "own/runs").glob("natural-s0-*")
    return run


@pytest.mark.parametrize(
    "name", ["outcomes/fgsm.csv", "outcomes/fgsm.json", "outcomes/clean.csv", "outcomes/clean.json", "sparsity.json",
             "training.json", "run.json", "environment.json", "model.safetensors"]
)  # fmt: skip
def test_a_file_edited_by_hand_is_named(trained: Path, tmp_path: Path, name: str) -> None:
    run = stored_run(trained, tmp_path)
    assert name in json.loads((run / RECORD).read_text())
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole[:-2] + b"1" + whole[-1:])
    with pytest.raises(UserError, match=rf"{name}: changed since it was stored"):
        tabulate(tmp_path / "own")


def test_verdicts_lifted_by_hand_are_refused(trained: Path, tmp_path: Path) -> None:
    run = stored_run(trained, tmp_path)
    path = run / "outcomes/fgsm.csv"
    pd.read_csv(path).assign(adv_correct=1).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"fgsm\.csv: changed since it was stored"):
        tabulate(tmp_path / "own")


def test_a_run_heals_an_outcome_that_was_changed(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    (run,) = (tmp_path / "copy/results/own/runs").glob("natural-s0-*")
    whole = (run / "outcomes/fgsm.csv").read_bytes()
    (run / "outcomes/fgsm.csv").write_bytes(whole.replace(b",0.0,", b",1.0,"))
    assert (run / "outcomes/fgsm.csv").read_bytes() != whole
    assert run_it(tmp_path / "copy").returncode == 0
    assert (run / "outcomes/fgsm.csv").read_bytes() == whole


def test_a_status_that_is_none_is_a_failure(trained: Path, tmp_path: Path) -> None:
    from robustbench_sparse.runs.seals import seal

    run = stored_run(trained, tmp_path)
    path = run / "outcomes/fgsm.csv"
    pd.read_csv(path).assign(status="banana").to_csv(path, index=False)
    seal(run)
    row = tabulate(tmp_path / "own").set_index("run").loc["natural"]
    assert "no verdict" in row["status"]
    assert "banana" in row["status"]
    assert pd.isna(row["fgsm"])
    assert pd.isna(row["worst"])


# Crashes that look like success ---------------------------------------------------------------------------


class Leaves(nn.Module):
    """Ends the program once it is asked for a gradient."""

    def __init__(self, code: object = 0, always: bool = False) -> None:
        super().__init__()
        self.linear, self.code, self.always = linear_nets.trained(), code, always

    def forward(self, x: Tensor) -> Tensor:
        if self.always or torch.is_grad_enabled():
            raise SystemExit(self.code)
        return self.linear(x.flatten(1))


def test_a_network_that_ends_the_program_under_attack_is_a_crash(tmp_path: Path) -> None:
    row = evaluate(Leaves(), **JUDGED).iloc[0]
    assert row["clean"] == pytest.approx(truth()["clean"])
    assert pd.isna(row["fgsm"])
    assert pd.isna(row["worst"])
    assert "fgsm: crashed: SystemExit: 0" in row["status"]


def test_a_network_that_ends_the_program_at_once_is_an_error() -> None:
    with pytest.raises(UserError, match="SystemExit"):
        evaluate(Leaves(always=True), **JUDGED)


def test_the_command_does_not_end_well_when_the_network_ends_it(tmp_path: Path) -> None:
    write_net(tmp_path, "leaver", "__import__('sys').exit(0)")
    words = ["evaluate", "leaver:net", "--dataset", "digits", "--attacks", "fgsm", "-q"]
    done = forks.run(words, cwd=tmp_path)
    assert done.returncode == 2
    assert "SystemExit" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# Networks that are fed wrongly ----------------------------------------------------------------------------


def test_a_network_near_chance_is_not_attacked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    random = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(
        UserError, match=r"guessing has 10\.0 %: nothing was attacked.*--weights.*normalisation"
    ):
        evaluate(random, **JUDGED, out=tmp_path)
    assert not list(tmp_path.rglob("fgsm.csv"))
    assert evaluate(random, **JUDGED, expect_clean=0)["status"][0] == "ok"


def test_a_clean_accuracy_far_below_the_claim_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path, "darkened", DARKENED)
    true, claimed = truth(scale=0.5)["clean"], truth()["clean"]
    assert evaluate("darkened:net", **JUDGED, expect_clean=true)["clean"][0] == pytest.approx(true)
    with pytest.raises(UserError, match=r"where --expect-clean says 100 %"):
        evaluate(Scaled(-1.0), **JUDGED, expect_clean=100)
    assert evaluate(Scaled(1.0), **JUDGED, expect_clean=claimed + 1)["clean"][0] == pytest.approx(claimed)


# Files of others ------------------------------------------------------------------------------------------


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    theirs = [tmp_path / ".draft.tmp", tmp_path / "deep/er/.draft.tmp", tmp_path / "deep/.rbs-mine.tmp"]
    for path in theirs:
        path.write_text("theirs")
    ours = tmp_path / "runs/x/.rbs-clean.csv.abc.tmp"
    ours.parent.mkdir(parents=True)
    ours.write_text("left by a kill")
    judge(tmp_path, Scaled(1.0))
    assert all(path.read_text() == "theirs" for path in theirs)
    assert not ours.exists()


@pytest.mark.parametrize(
    "place",
    ["model", "data", "defenses", "stages.optimizer", "stages.schedule", "bare model", "bare data", "main"],
)
@pytest.mark.parametrize("command", ["sparsity", "evaluate"])
def test_a_strangers_run_imports_nothing(trained: Path, tmp_path: Path, place: str, command: str) -> None:
    from robustbench_sparse.runs.seals import seal

    run = stored_run(trained, tmp_path)
    (tmp_path / "trap.py").write_text("from pathlib import Path\nPath('sprung').write_text('x')\n")
    facts = json.loads((run / "run.json").read_text())
    record, name = facts["record"], "trap:Net"
    entry: Any = {"name": name}
    if place == "main":
        (tmp_path / "trapped").mkdir()
        (tmp_path / "trapped/__init__.py").write_text("")
        (tmp_path / "trap.py").rename(tmp_path / "trapped/__main__.py")
        record["model"] = {"name": "trapped.__main__:Net"}
    elif place.startswith("stages"):
        record["stages"][0][place.removeprefix("stages.")] = entry
    elif place == "defenses":
        record["defenses"] = [entry]
    else:
        record[place.removeprefix("bare ")] = name if place.startswith("bare") else entry
    (run / "run.json").write_text(json.dumps(facts))
    seal(run)
    done = forks.run([command, run], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "refused" in done.stderr or "__main__" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "sprung").exists()


def test_a_run_with_a_plug_in_of_ones_own_is_read_when_that_is_trusted(tmp_path: Path) -> None:
    benchmark_file(tmp_path)
    (tmp_path / "my_penalty.py").write_text(PENALTY)
    (tmp_path / "my_strength.py").write_text(STRENGTH.format(strength=0.0))
    assert run_it(tmp_path).returncode == 0
    (run,) = (tmp_path / "results/own/runs").glob("own-s0-*")
    done = forks.run(["sparsity", run], cwd=tmp_path)
    assert done.returncode == 2
    assert "add --trust-plugins my_penalty" in done.stderr
    done = forks.run(["sparsity", run, "--trust-plugins", "my_penalty"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# The disk -------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_what_is_stored_stays_good(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench_sparse.foundation import files

    raw = json.loads(benchmark_file(tmp_path, runs={"natural": {}}).read_text())
    done = 0

    def full(path: Path, write: Any) -> None:
        nonlocal done
        done += 1
        if done > 8:
            raise OSError(28, "No space left on device")
        whole(path, write)

    whole = files._write
    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        run_benchmark(raw, out=tmp_path)
    monkeypatch.setattr(files, "_write", whole)
    table = run_benchmark(raw, out=tmp_path)
    assert table["status"].tolist() == ["ok"]
    assert not list(tmp_path.rglob("*.tmp"))


WRECKER = """
import shutil
from dataclasses import dataclass
from pathlib import Path

from attacks.base import Attack


@dataclass(frozen=True, kw_only=True)
class Wreck(Attack):
    def run(self, model, x, y, threat, random):
        shutil.rmtree(Path("results"))
        return x
"""


def test_a_folder_that_is_deleted_under_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "wrecker.py").write_text(WRECKER)
    benchmark_file(tmp_path, runs={"natural": {}}, attacks={"wreck": {"name": "wrecker:Wreck"}})
    done = run_it(tmp_path, "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


# What comes back from a network ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            "(self.linear(x.flatten(1)), x)",
            "returns a tuple, expected a tensor of logits (B, 10); return its first",
        ),
        (
            "__import__('types').SimpleNamespace(logits=self.linear(x.flatten(1)))",
            "its .logits are one: return these",
        ),
        ("self.linear(x.flatten(1)).to(torch.complex64)", "returns torch.complex64"),
        ("self.linear(x.flatten(1)).argmax(1)", "returns torch.int64"),
        ("self.linear(x.flatten(1))[:, :3]", "gives (1, 3) for one image, expected (1, 10)"),
        ("self.linear(x.flatten(1)).to('meta')", "on meta, expected floating-point logits"),
        ("None", "returns a NoneType"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_answers_that_are_no_logits_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"answers_{abs(hash(answer))}"
    write_net(tmp_path, name, answer)
    with pytest.raises(UserError) as error:
        evaluate(f"{name}:net", **JUDGED)
    assert message in str(error.value)


def test_a_network_judged_elsewhere_is_not_taken_for_one_trained_here(tmp_path: Path) -> None:
    judge(tmp_path, Scaled(1.0))
    (run,) = (tmp_path / "runs").iterdir()
    with pytest.raises(UserError, match="was judged, not trained here: name the factory"):
        evaluate(run)
