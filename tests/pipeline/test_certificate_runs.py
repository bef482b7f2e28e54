"""A benchmark with certificates, end to end: verdicts in the table, a kill in the middle, relatives, transfer."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from robustbench_sparse import evaluate, run_benchmark
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.foundation.errors import UserError
from tests.helpers import forks
from tests.helpers.small import small

pytestmark = pytest.mark.slow

TINY = replace(
    BUDGETS["quick"], images=40, random_images=24, few=12, steps=10, queries=60, random_draws=60, inner_points=30,
    draws=6, eot=3, samples=10,
)  # fmt: skip
MLP = {"name": "mlp", "hidden": [24]}
# The command with that budget.
SMALLER = """
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.cli.main import main
from tests.pipeline.test_certificate_runs import TINY

BUDGETS["quick"] = TINY
main()
"""


def benchmark(**changes: Any) -> dict[str, Any]:
    train = {"epochs": 6, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9}}
    runs = {
        "robust": {"defenses": [{"name": "pgd_at", "steps": 2}]},
        "natural": {},
        "noisy": {"defenses": [{"name": "broken", "how": "noise", "strength": 0.05}]},
    }
    evaluation = {"limit": 96, "batch_size": 48, "draws": 3, "certificate": "quick"}
    return small(**{"model": MLP, "train": train, "runs": runs, "evaluation": evaluation, **changes})


@pytest.fixture(scope="module")
def tiny() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "quick", TINY)
        yield


@pytest.fixture(scope="module")
def results(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("results")
    return out / "small", run_benchmark(benchmark(), out=out)


def certificate(folder: Path, run: str) -> dict[str, Any]:
    (path,) = folder.glob(f"runs/{run}-*/certificate/certificate.json")
    made: dict[str, Any] = json.loads(path.read_text())
    return made


def status(made: dict[str, Any]) -> dict[str, str]:
    return {c["id"]: c["status"] for c in made["checks"]}


def test_every_row_has_a_verdict_and_a_rank(results: tuple[Path, pd.DataFrame]) -> None:
    folder, table = results
    assert set(table["status"]) == {"ok"}
    assert set(table["verdict"]) <= {"believable", "corrected", "doubtful", "refuted"}
    assert table["rank"].notna().all()
    assert table["rank"].min() == 1
    for run in table["run"]:
        made = certificate(folder, run)
        assert made["verdict"] == table.set_index("run")["verdict"][run]
        crashed = [c["id"] for c in made["checks"] if c["done"].startswith("the check itself failed")]
        assert crashed == []
    text = (folder / "leaderboard.md").read_text()
    assert "| verdict |" in text


def test_checks_that_need_relatives_and_files_find_them(results: tuple[Path, pd.DataFrame]) -> None:
    folder, _ = results
    robust, natural = (status(certificate(folder, run)) for run in ("robust", "natural"))
    # The twin was trained first, though it stands later in the file.
    assert robust["M9"] in ("passed", "failed")
    assert robust["M11"] in ("passed", "failed")
    assert natural["M9"] == "skipped"
    assert natural["M11"] in ("passed", "failed")
    for name in ("B3", "S1", "S2", "H1", "M10"):
        assert robust[name] == "passed", name
    noisy = status(certificate(folder, "noisy"))
    assert noisy["R2"] == "passed"
    assert all(noisy[name] != "skipped" for name in ("R3", "R4", "R5", "R6"))


def test_a_second_run_examines_nothing_again(tiny: None, results: tuple[Path, pd.DataFrame]) -> None:
    folder, table = results
    before = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/certificate/*")}
    again = run_benchmark(benchmark(), out=folder.parent)
    assert {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/certificate/*")} == before
    pd.testing.assert_frame_equal(again, table)


def test_without_the_certificate_the_verdict_is_not_checked(
    results: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    folder, table = results
    off = benchmark()
    off["evaluation"]["certificate"] = "off"
    plain = run_benchmark(off, out=tmp_path)
    assert set(plain["verdict"]) == {"not checked"}
    assert set(plain["flags"]) == {""}
    assert (plain["worst"] >= table["worst"] - 1e-9).all()
    again = run_benchmark(off, out=folder.parent)
    assert again["verdict"].tolist() == table["verdict"].tolist(), (
        "certificates that are there stay in the table"
    )


def test_a_budget_of_time_is_seen_in_the_row_and_lifted_later(tiny: None, tmp_path: Path) -> None:
    config = benchmark(runs={"natural": {}})
    short = run_benchmark(config, out=tmp_path, changes=["evaluation.certificate_seconds=1"]).iloc[0]
    made = certificate(tmp_path / "small", "natural")
    left_out = {k for k, s in status(made).items() if s == "left_out"}
    assert "B3" in left_out  # a new process is the dearest of all
    assert left_out == set(made["spending"]["left_out"])
    assert short["protocol"].endswith("-1s")
    assert short["verdict"] in ("partly checked", "doubtful", "refuted")
    assert "checks left out, 1 s" in short["status"]
    assert short["status"].startswith("ok")
    whole = run_benchmark(config, out=tmp_path, changes=["evaluation.certificate_seconds=100000"]).iloc[0]
    assert whole["status"] == "ok"
    assert not whole["protocol"].endswith("s")
    assert "left_out" not in status(certificate(tmp_path / "small", "natural")).values()


def test_a_twin_that_comes_later_makes_the_certificate_anew(tiny: None, tmp_path: Path) -> None:
    run_benchmark(benchmark(), out=tmp_path, only=["robust"])
    alone = certificate(tmp_path / "small", "robust")
    assert status(alone)["M9"] == "skipped"
    run_benchmark(benchmark(), out=tmp_path, only=["natural"])
    run_benchmark(benchmark(), out=tmp_path, only=["robust"])
    assert status(certificate(tmp_path / "small", "robust"))["M9"] in ("passed", "failed")


def test_explain_prints_every_check(results: tuple[Path, pd.DataFrame]) -> None:
    folder, _ = results
    (run,) = folder.glob("runs/robust-*")
    done = forks.run(["explain", run])
    assert done.returncode == 0, done.stderr
    for name in ("M1 ", "G1 ", "Z1 ", "B3 ", "H2 "):
        assert f"\n{name}" in done.stdout
    done = forks.run(["explain", folder])
    assert done.returncode == 2
    assert "not a run's folder" in done.stderr


def test_a_foreign_network_gets_a_verdict_too(tiny: None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    table = evaluate(
        net, dataset="digits", attacks={"pgd": {"name": "pgd", "steps": 10}}, eps=0.1, limit=64,
        changes=["evaluation.certificate=quick"], expect_clean=0,
    )  # fmt: skip
    assert table["verdict"][0] in ("believable", "corrected", "doubtful", "refuted")
    assert table["status"][0] == "ok"


def test_transfer_from_another_row_trains_that_row_first(tmp_path: Path) -> None:
    config = benchmark(
        attacks={
            "pgd": {"name": "pgd", "steps": 4},
            "borrowed": {"name": "transfer", "source": "natural", "steps": 10},
        },
        evaluation={"limit": 96, "batch_size": 48, "draws": 3},
    )
    table = run_benchmark(config, out=tmp_path, only=["robust"]).set_index("run")
    assert table["borrowed"]["robust"] <= table["clean"]["robust"]
    assert table["status"]["natural"].startswith("incomplete")  # trained, and not judged
    (about,) = (tmp_path / "small").glob("runs/robust-*/outcomes/borrowed.json")
    (training,) = (tmp_path / "small").glob("runs/natural-*/training.json")
    assert (
        json.loads(about.read_text())["key"]["source"] == json.loads(training.read_text())["weights_sha256"]
    )


def test_a_transfer_source_that_is_no_row_is_refused_with_its_key_path(tmp_path: Path) -> None:
    config = benchmark(attacks={"borrowed": {"name": "transfer", "source": "naturel"}})
    with pytest.raises(UserError, match=r"attacks\.borrowed\.source: .*natural.*'naturel'.*did you mean"):
        run_benchmark(config, out=tmp_path)
    with pytest.raises(UserError, match=r"evaluation\.certificate: expected 'off', 'quick' or 'full'"):
        run_benchmark(benchmark(evaluation={"certificate": "some"}), out=tmp_path)


def test_kill_9_in_the_middle_of_a_certificate_changes_nothing(tmp_path: Path) -> None:
    config = benchmark(runs={"natural": {}}, threads=1)
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(config))
    command = ["run", str(tmp_path / "b.yaml"), "-q", "--out"]
    (tmp_path / "tiny.py").write_text(SMALLER)
    process = forks.start([*command, tmp_path / "cut"], script=tmp_path / "tiny.py")
    deadline = time.monotonic() + 120
    parts: list[Path] = []
    while time.monotonic() < deadline and process.poll() is None:
        parts = list((tmp_path / "cut").glob("small/runs/*/certificate/.parts/findings.json"))
        if parts and len(json.loads(parts[0].read_text())["checks"]) >= 12:
            break
        time.sleep(0.05)
    assert parts
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "cut").glob("small/runs/*/certificate/certificate.json"))
    for name in ("cut", "whole"):
        forks.run([*command, tmp_path / name], script=tmp_path / "tiny.py", check=True)
    cut, whole = (certificate(tmp_path / name / "small", "natural") for name in ("cut", "whole"))
    for made in (cut, whole):
        made.pop("seconds")
        for check in made["checks"]:
            check.pop("seconds")
    assert cut == whole
    found = [next((tmp_path / n / "small").glob("runs/*/certificate/found.csv")) for n in ("cut", "whole")]
    assert found[0].read_bytes() == found[1].read_bytes()
