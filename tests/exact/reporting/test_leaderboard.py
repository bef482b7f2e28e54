"""The fold over run folders written by hand, with answers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustbench_sparse.config.columns import is_reserved
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.reporting import leaderboard, tables
from robustbench_sparse.reporting.leaderboard import aggregate, rates_of
from tests.helpers.sealing import sealed

LABELS = ("fgsm", "pgd")
COUNTS: dict[str, Any] = {
    "weight_sparsity": 50.0,
    "linear_sparsity": 40.0,
    "channel_sparsity": 25.0,
    "kernel_sparsity": None,
    "row_sparsity": 0.0,
    "parameters": 100,
    "nonzero_parameters": 60,
    "macs": 12345,
    "sparse_macs": 6000,
    "asked": [],
    "refused": "",
    "layers": [],
}


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def benchmark(
    folder: Path,
    runs: Sequence[tuple[str, int]] = (("a", 0),),
    norm: str = "linf",
    eps: float = 0.1,
    published: Mapping[str, Mapping[str, float]] | None = None,
    labels: Sequence[str] = LABELS,
) -> Path:
    """``benchmark.json`` and whole runs without outcomes."""
    threat = {"norm": norm, "eps": eps}
    entries = [{"run_id": f"{run}-{seed}", "run": run, "seed": seed} for run, seed in runs]
    dump(
        folder / "benchmark.json",
        {
            "name": "tiny",
            "source": "",
            "dataset": "digits",
            "attacks": list(labels),
            "threat": threat,
            "runs": entries,
            "published": published or {},
        },
    )
    for entry in entries:
        home = folder / "runs" / entry["run_id"]
        dump(
            home / "run.json", {**entry, "model": "mlp()", "defenses": f"d({entry['run']})", "threat": threat}
        )
        dump(home / "environment.json", {"commit": "abc123"})
        dump(
            home / "training.json",
            {"status": "complete", "reason": "", "train_seconds": 2.26, "selected": {}},
        )
        dump(home / "sparsity.json", COUNTS)
    return folder


def about(label: str, n: int, **changes: Any) -> dict[str, Any]:
    return {
        "label": label,
        "status": "ok",
        "reason": "",
        "n": n,
        "seconds": 1.5,
        "draws": 1,
        "key": {},
        **changes,
    }


def clean(folder: Path, run_id: str, correct: Sequence[float], **changes: Any) -> None:
    outcomes = folder / "runs" / run_id / "outcomes"
    dump(outcomes / "clean.json", about("clean", len(correct), **changes))
    n = len(correct)
    table = pd.DataFrame(
        {"index": range(n), "label": [i % 3 for i in range(n)], "pred": 0, "correct": correct}
    )
    table.to_csv(outcomes / "clean.csv", index=False)


def attack(
    folder: Path,
    run_id: str,
    label: str,
    correct: Sequence[float | None],
    linf: float | Sequence[float] = 0.1,
    l2: float | Sequence[float] = 1.0,
    status: str | Sequence[str] = "ok",
    first: int = 0,
    **changes: Any,
) -> None:
    n = len(correct)
    outcomes = folder / "runs" / run_id / "outcomes"
    dump(outcomes / f"{label}.json", about(label, n, **changes))
    table = pd.DataFrame(
        {
            "index": range(first, first + n),
            "label": [i % 3 for i in range(n)],
            "clean_pred": 0,
            "clean_correct": 1,
            "adv_pred": 1,
            "adv_correct": correct,
            "linf": linf,
            "l2": l2,
            "forward": 1,
            "backward": 1,
            "status": status,
        }
    )
    table.to_csv(outcomes / f"{label}.csv", index=False)


def tabulate(folder: Path, only: Sequence[str] = ()) -> pd.DataFrame:
    return leaderboard.tabulate(sealed(folder), only)


def tabulate_all(folder: Path, only: Sequence[str] = ()) -> list[pd.DataFrame]:
    for path in (folder, *folder.glob("*")):
        sealed(path)
    return leaderboard.tabulate_all(folder, only)


def write(folder: Path) -> pd.DataFrame:
    return tables.write(sealed(folder))


def row(folder: Path) -> pd.Series[Any]:
    table = tabulate(folder)
    assert len(table) == 1
    return table.iloc[0]


def is_empty(row: pd.Series[Any], *names: str) -> bool:
    return all(pd.isna(row[c]) for name in names for c in (name, f"{name}_lo", f"{name}_hi"))


# A whole row --------------------------------------------------------------------------------------------


def test_a_whole_row(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, published={"a": {"pgd": 31.5, "clean": 70.0}, "b": {"fgsm": 1.0}})
    clean(folder, "a-0", [1, 1, 1, 0])
    attack(folder, "a-0", "fgsm", [1, 0, 1, 0])
    attack(folder, "a-0", "pgd", [0, 1, 1, 0])
    r = row(folder)
    assert (r["benchmark"], r["run"], r["seed"], r["dataset"]) == ("tiny", "a", 0, "digits")
    assert (r["model"], r["defenses"], r["run_id"], r["commit"]) == ("mlp()", "d(a)", "a-0", "abc123")
    assert (r["n"], r["clean"], r["fgsm"], r["pgd"]) == (4, 75.0, 50.0, 50.0)
    assert r["worst"] == 25.0  # only the third image survives both: 25, not the smaller of 50 and 50
    for name, share in {"clean": 3, "fgsm": 2, "pgd": 2, "worst": 1}.items():
        low, high = wilson(share, 4)
        assert (r[f"{name}_lo"], r[f"{name}_hi"]) == pytest.approx((100 * low, 100 * high))
    assert (r["weight_sparsity"], r["row_sparsity"], r["macs"]) == (50.0, 0.0, 12345)
    assert pd.isna(r["kernel_sparsity"])  # such a network has no kernels
    assert (r["published_pgd"], r["published_clean"]) == (31.5, 70.0)
    assert pd.isna(r["published_fgsm"])
    assert (r["train_seconds"], r["eval_seconds"]) == (2.26, 4.5)
    assert r["status"] == "ok"


def test_asked_stands_beside_achieved(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    asked = [
        {"kind": "weight", "percent": 80.0, "achieved": 79.996},
        {"kind": "row", "percent": 5.5, "achieved": 7.0, "binding": True},
        {"kind": "weight", "percent": 98.1, "achieved": 97.8, "binding": False},
    ]
    dump(folder / "runs" / "a-0" / "sparsity.json", {**COUNTS, "asked": asked})
    assert row(folder)["asked"] == "weight 80: 80.00; row 5.5: 7.00; weight 98.1 (goal): 97.80"


def test_an_attack_on_the_prediction_has_the_share_left_unchanged(tmp_path: Path) -> None:
    """Two of four predictions stand; ``worst`` counts what is classified right."""
    folder = benchmark(tmp_path, labels=("own",))
    settings = {"name": "pgd", "reference": "prediction"}
    manifest = json.loads((folder / "benchmark.json").read_text())
    dump(folder / "benchmark.json", {**manifest, "settings": {"own": settings}})
    clean(folder, "a-0", [1, 0, 1, 0])
    attack(folder, "a-0", "own", [1, 0, 1, 1], key={"attack": settings})
    path = folder / "runs" / "a-0" / "outcomes" / "own.csv"
    changed = [0, 2, 0, 1]  # clean predictions are all 0: two stand
    pd.read_csv(path).assign(adv_pred=changed).to_csv(path, index=False)
    r = row(folder)
    assert r["status"] == "ok"
    assert r["own"] == 50.0
    assert r["worst"] == 50.0  # of the two right images none fell; the fourth became right, and never counts
    pd.read_csv(path).drop(columns="adv_pred").to_csv(path, index=False)
    with pytest.raises(UserError, match="no column 'adv_pred'"):
        row(folder)


def test_some_rows_are_ranked_among_themselves(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, runs=[("at+x", 0), ("x", 0), ("y", 0)], labels=("fgsm",))
    for run, right in (("at+x", 40), ("x", 20), ("y", 0)):
        clean(folder, f"{run}-0", [1] * 40)
        attack(folder, f"{run}-0", "fgsm", [1] * right + [0] * (40 - right))
    assert [*tabulate(folder)["rank"]] == [1, 2, 3]
    chosen = tabulate(folder, only=["y", "x"])
    assert [*chosen["run"], *chosen["rank"]] == ["x", "y", 1, 2]
    assert [*tabulate(folder, only=["*x"])["run"]] == ["at+x", "x"]
    assert [len(table) for table in tabulate_all(tmp_path, only=["?"])] == [2]
    with pytest.raises(UserError, match=r"--only z\*: no such run in .*; there are: at\+x, x, y"):
        tabulate(folder, only=["z*"])


def test_a_refused_row_has_no_numbers(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    home = folder / "runs" / "a-0"
    clean(folder, "a-0", [1, 1, 1, 1])
    assert row(folder)["clean"] == 100.0
    dump(home / "sparsity.json", {**COUNTS, "refused": "80 % is claimed"})
    r = row(folder)
    assert r["status"] == "refused: 80 % is claimed"
    assert all(pd.isna(r[c]) for c in ("clean", "worst", "weight_sparsity", "macs"))


def test_counts_of_before_are_still_read(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    old = {k: v for k, v in COUNTS.items() if k not in ("asked", "refused", "linear_sparsity", "sparse_macs")}
    dump(folder / "runs" / "a-0" / "sparsity.json", old)
    r = row(folder)
    assert (r["weight_sparsity"], r["macs"], r["asked"]) == (50.0, 12345, "")
    assert pd.isna(r["linear_sparsity"])
    assert pd.isna(r["sparse_macs"])


def test_columns_and_their_order(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, published={"a": {"pgd": 31.5, "clean": 70.0}})
    assert list(tabulate(folder).columns) == [
        *("benchmark", "run", "seed", "dataset", "model", "defenses", "precision", "n"),
        *("clean", "clean_lo", "clean_hi", "fgsm", "fgsm_lo", "fgsm_hi", "pgd", "pgd_lo", "pgd_hi"),
        *("worst", "worst_lo", "worst_hi", "worst_n", "rank", "rank_high", "rank_seeds", "rank_seeds_high"),
        *("detectable", "detectable_seeds", "verdict", "flags", "protocol"),
        *(
            "weight_sparsity",
            "linear_sparsity",
            "channel_sparsity",
            "kernel_sparsity",
            "row_sparsity",
            "asked",
        ),
        *("parameters", "nonzero_parameters", "macs", "sparse_macs", "train_accuracy"),
        *("published_clean", "published_pgd"),
        *("train_seconds", "eval_seconds", "status", "run_id", "commit"),
    ]
    assert rates_of(tabulate(folder)) == ["clean", "fgsm", "pgd", "worst"]


def test_every_fixed_column_is_closed_to_attack_labels(tmp_path: Path) -> None:
    table = tabulate(benchmark(tmp_path, published={"a": {"pgd": 1.0}}))
    over_seeds = aggregate(table)
    assert all(is_reserved(c) for c in [*table.columns, *over_seeds.columns] if c not in LABELS)
    assert not any(is_reserved(label) for label in LABELS)


def test_random_networks_count_by_their_share_of_draws(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    clean(folder, "a-0", [1, 0.5, 0.9, 0])
    attack(folder, "a-0", "fgsm", [0.4, 0.6, 0.9, 0.1])
    attack(folder, "a-0", "pgd", [0.7, 0.2, 1.0, 0.3])
    r = row(folder)
    assert r["clean"] == pytest.approx(60.0)
    assert r["fgsm"] == pytest.approx(50.0)
    assert r["worst"] == pytest.approx(100 * (0.4 + 0.2 + 0.9 + 0.0) / 4)


# The worst case -----------------------------------------------------------------------------------------


def test_candidates_outside_the_ball_do_not_count(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, eps=0.1)
    clean(folder, "a-0", [1, 1, 1, 1])
    attack(folder, "a-0", "fgsm", [1, 1, 1, 0])
    # A minimum-norm attack fools every image, with perturbations of its own size.
    attack(folder, "a-0", "pgd", [0, 0, 0, 0], linf=[0.05, 0.1 + 5e-7, 0.1 + 5e-6, 0.3])
    r = row(folder)
    assert r["pgd"] == 0.0
    assert r["worst"] == 25.0  # the third image alone: its candidate lies outside, and fgsm failed


def test_the_ball_is_the_benchmarks_norm(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, norm="l2", eps=2.0)
    clean(folder, "a-0", [1, 1, 1, 1])
    attack(folder, "a-0", "fgsm", [0, 0, 0, 0], linf=0.0, l2=[2.0 + 1e-5, 2.0 + 1e-4, 2.1, 1.0])
    attack(folder, "a-0", "pgd", [1, 1, 1, 1], linf=9.0, l2=2.0)
    assert row(folder)["worst"] == 50.0


def test_no_bound_means_every_candidate_counts(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, norm="l2", eps=math.inf)
    clean(folder, "a-0", [1, 1])
    attack(folder, "a-0", "fgsm", [0, 1], l2=1e9)
    attack(folder, "a-0", "pgd", [1, 1])
    assert row(folder)["worst"] == 50.0


def test_without_any_candidate_in_the_ball_nothing_was_shown(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    clean(folder, "a-0", [1, 1])
    for label in LABELS:
        attack(folder, "a-0", label, [0, 0], linf=0.2)
    r = row(folder)
    assert is_empty(r, "worst")
    assert r["fgsm"] == 0.0
    assert r["status"] == "worst: no attack's image lies in the benchmark's ball"


def test_without_attacks_there_is_no_worst_case(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, labels=())
    clean(folder, "a-0", [1, 0])
    r = row(folder)
    assert r["clean"] == 50.0
    assert is_empty(r, "worst")
    assert r["status"] == "ok"


def test_an_image_wrong_from_the_start_stays_wrong(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    clean(folder, "a-0", [0, 1])
    for label in LABELS:
        attack(folder, "a-0", label, [1, 1])
    assert row(folder)["worst"] == 50.0


# Gaps must not look robust ------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = benchmark(tmp_path)
    clean(folder, "a-0", [1, 1, 0])
    for label in LABELS:
        attack(folder, "a-0", label, [1, 0, 0])
    assert row(folder)["status"] == "ok"
    return folder


@pytest.mark.parametrize("status", ["crashed", "nonfinite"])
def test_a_failed_attack_leaves_its_cell_and_the_worst_case_empty(whole: Path, status: str) -> None:
    attack(whole, "a-0", "pgd", [1, 1, 1], status=status, reason="")
    dump(whole / "runs/a-0/outcomes/pgd.json", about("pgd", 3, status=status, reason="out of\nmemory"))
    r = row(whole)
    assert is_empty(r, "pgd", "worst")
    assert (r["clean"], r["fgsm"]) == pytest.approx((200 / 3, 100 / 3))
    assert r["status"] == f"pgd: {status}: out of memory"


def test_a_crash_before_the_first_image_has_no_table(whole: Path) -> None:
    dump(whole / "runs/a-0/outcomes/pgd.json", about("pgd", 0, status="crashed", reason="boom"))
    (whole / "runs/a-0/outcomes/pgd.csv").unlink()
    r = row(whole)
    assert is_empty(r, "pgd", "worst")
    assert r["status"] == "pgd: crashed: boom"


@pytest.mark.parametrize("status", ["crashed", "nonfinite"])
def test_one_image_without_verdict_is_enough(whole: Path, status: str) -> None:
    attack(whole, "a-0", "pgd", [1, None, 0], status=["ok", status, "ok"])
    r = row(whole)
    assert is_empty(r, "pgd", "worst")
    assert r["status"] == f"pgd: no verdict on 1 of 3 images ({status})"


def test_an_empty_verdict_is_a_gap_even_if_its_status_says_ok(whole: Path) -> None:
    attack(whole, "a-0", "pgd", [1, None, 0])
    assert is_empty(row(whole), "pgd", "worst")


def test_a_missing_outcome(whole: Path) -> None:
    (whole / "runs/a-0/outcomes/fgsm.json").unlink()
    r = row(whole)
    assert is_empty(r, "fgsm", "worst")
    assert r["pgd"] == pytest.approx(100 / 3)
    assert r["status"] == "incomplete: fgsm"


def test_missing_clean_verdicts(whole: Path) -> None:
    (whole / "runs/a-0/outcomes/clean.json").unlink()
    r = row(whole)
    assert is_empty(r, "clean", "fgsm", "pgd", "worst")
    assert r["status"] == "incomplete: clean"


def test_another_choice_of_images_is_a_gap(whole: Path) -> None:
    attack(whole, "a-0", "pgd", [1, 0, 0], first=1)
    r = row(whole)
    assert is_empty(r, "pgd", "worst")
    assert r["status"] == "pgd: judged on other images than clean"


def test_an_outcome_of_other_settings_is_a_gap(whole: Path) -> None:
    manifest = json.loads((whole / "benchmark.json").read_text())
    settings = {"name": "pgd", "steps": 50, "eps": math.inf}
    dump(whole / "benchmark.json", {**manifest, "settings": {"pgd": settings}})
    attack(whole, "a-0", "pgd", [1, 0, 0], key={"attack": settings})
    assert row(whole)["status"] == "ok"
    attack(whole, "a-0", "pgd", [1, 1, 1], key={"attack": {**settings, "steps": 5}})
    r = row(whole)
    assert is_empty(r, "pgd", "worst")
    assert r["status"] == "incomplete: pgd (its settings have changed)"


def test_several_gaps_are_all_named(whole: Path) -> None:
    (whole / "runs/a-0/outcomes/fgsm.json").unlink()
    (whole / "runs/a-0/sparsity.json").unlink()
    dump(whole / "runs/a-0/outcomes/pgd.json", about("pgd", 0, status="crashed", reason="boom"))
    r = row(whole)
    assert r["status"] == "incomplete: sparsity; incomplete: fgsm; pgd: crashed: boom"
    assert pd.isna(r["weight_sparsity"])


def test_a_network_that_diverged_has_no_rates(whole: Path) -> None:
    dump(
        whole / "runs/a-0/training.json",
        {"status": "diverged", "reason": "loss is nan at epoch 3", "train_seconds": 1.0},
    )
    r = row(whole)
    assert is_empty(r, "clean", "fgsm", "pgd", "worst")
    assert pd.isna(r["n"])
    assert pd.isna(r["weight_sparsity"])
    assert r["status"] == "diverged: loss is nan at epoch 3"


def test_runs_that_were_not_trained_are_rows_too(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, runs=[("a", 0), ("b", 0)])
    (folder / "runs/a-0/training.json").unlink()
    for file in (folder / "runs/b-0").iterdir():
        file.unlink()
    table = tabulate(folder)
    assert list(table["run"]) == ["a", "b"]
    assert list(table["status"]) == ["incomplete: training", "not trained"]
    assert table[["clean", "worst", "train_seconds"]].isna().all(axis=None)


def test_what_was_projected_back_is_said(whole: Path) -> None:
    attack(whole, "a-0", "pgd", [1, 0, 0], status=["outside_ball", "outside_ball", "outside_box"])
    r = row(whole)
    assert r["pgd"] == pytest.approx(100 / 3)
    assert r["status"] == "ok; pgd: 1 outside_box, projected back; pgd: 2 outside_ball, projected back"


# Damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("benchmark.json", "{"),
        ("benchmark.json", "[]"),
        ("benchmark.json", '{"name": "tiny"}'),
        ("runs/a-0/run.json", "{}"),
        ("runs/a-0/training.json", '{"status": "complete"'),
        ("runs/a-0/sparsity.json", '{"weight_sparsity": 3}'),
        ("runs/a-0/outcomes/clean.json", "3"),
        ("runs/a-0/outcomes/pgd.json", ""),
        ("runs/a-0/outcomes/pgd.csv", ""),
        ("runs/a-0/outcomes/pgd.csv", "index,label\n0,0\n"),
        ("runs/a-0/outcomes/pgd.csv", "index,label,adv_correct,linf,l2,status\n0,0,1,0.1,1,ok\n"),
        ("runs/a-0/outcomes/clean.csv", "index,label,correct\n0,0,1\n1,1,yes\n2,2,0\n"),
        ("runs/a-0/outcomes/clean.csv", "index,label,correct\n0,0,1\n1,1,2\n2,2,0\n"),
        ("runs/a-0/outcomes/clean.csv", "index,label,correct\n0,0,1\n1,1,\n2,2,0\n"),
        ("runs/a-0/outcomes/clean.csv", "index,label,correct\n0,0,1\n0,0,1\n2,2,0\n"),
    ],
)
def test_a_damaged_file_is_named(whole: Path, file: str, text: str) -> None:
    (whole / file).write_text(text)
    with pytest.raises(UserError) as e:
        tabulate(whole)
    assert str(e.value).startswith(f"{whole / file}: ")
    assert "\n" not in str(e.value)


def test_a_lost_table_is_named(whole: Path) -> None:
    (whole / "runs/a-0/outcomes/pgd.csv").unlink()
    with pytest.raises(UserError, match=r"pgd\.csv: not in files\.json"):
        tabulate(whole)


def test_folders_without_benchmarks(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"no (benchmark here|such folder)"):
            tabulate_all(folder)
    with pytest.raises(UserError, match="no benchmark here"):
        tabulate(tmp_path)


def test_a_folder_of_several_benchmarks(tmp_path: Path) -> None:
    benchmark(tmp_path / "two", labels=("cw",))
    benchmark(tmp_path / "one")
    (tmp_path / "notes").mkdir()
    tables = tabulate_all(tmp_path)
    assert [rates_of(t) for t in tables] == [["clean", "fgsm", "pgd", "worst"], ["clean", "cw", "worst"]]
    assert len(tabulate_all(tmp_path / "one")) == 1


# Over seeds ---------------------------------------------------------------------------------------------


def seeds(folder: Path) -> Path:
    benchmark(folder, runs=[("a", 0), ("a", 1), ("b", 0)], published={"a": {"pgd": 44.0}})
    for run_id, correct in (("a-0", [1, 1, 1, 0]), ("a-1", [1, 0, 0, 0]), ("b-0", [1, 1, 0, 0])):
        clean(folder, run_id, correct)
        attack(folder, run_id, "fgsm", [0, 0, 0, 0])
        attack(folder, run_id, "pgd", [1, 0, 0, 0])
    return folder


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    table = aggregate(tabulate(seeds(tmp_path)))
    assert list(table["run"]) == ["a", "b"]
    a, b = table.iloc[0], table.iloc[1]
    assert (a["seeds"], a["n"], a["status"], a["defenses"]) == (2, 4, "ok", "d(a)")
    assert a["clean_mean"] == 50.0
    assert a["clean_std"] == pytest.approx(math.sqrt(2 * 25.0**2))  # 75 and 25, ddof = 1
    assert (a["fgsm_mean"], a["fgsm_std"], a["weight_sparsity_mean"]) == (0.0, 0.0, 50.0)
    assert a["published_pgd"] == 44.0
    assert b["clean_mean"] == 50.0
    assert pd.isna(b["clean_std"])  # one seed has no deviation


def test_a_mean_over_a_gap_is_empty(tmp_path: Path) -> None:
    folder = seeds(tmp_path)
    dump(folder / "runs/a-1/outcomes/pgd.json", about("pgd", 0, status="crashed", reason="boom"))
    a = aggregate(tabulate(folder)).iloc[0]
    assert pd.isna(a["pgd_mean"])
    assert pd.isna(a["pgd_std"])
    assert pd.isna(a["worst_mean"])
    assert a["clean_mean"] == 50.0
    assert a["status"] == "seed 1: pgd: crashed: boom"


# Files --------------------------------------------------------------------------------------------------


def test_written_files_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = seeds(tmp_path / "x"), seeds(tmp_path / "y")
    names = ("leaderboard.csv", "leaderboard_seeds.csv", "leaderboard.md")
    table = write(first)
    before = [(first / name).read_bytes() for name in names]
    write(first)
    write(second)
    assert [(first / name).read_bytes() for name in names] == before
    assert [(second / name).read_bytes() for name in names] == before
    pd.testing.assert_frame_equal(table, tabulate(first))
    assert not [p for p in first.iterdir() if p.name.endswith(".tmp")]


def test_csv_is_rounded_and_its_gaps_are_empty(tmp_path: Path) -> None:
    folder = seeds(tmp_path)
    (folder / "runs/b-0/training.json").unlink()
    write(folder)
    lines = (folder / "leaderboard.csv").read_text().splitlines()
    cells = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    low, high = wilson(3, 4)
    assert (cells["clean"], cells["clean_lo"], cells["clean_hi"]) == (
        "75.0",
        str(round(100 * low, 4)),
        str(round(100 * high, 4)),
    )
    assert (cells["seed"], cells["n"], cells["macs"], cells["train_seconds"]) == ("0", "4", "12345", "2.3")
    assert cells["kernel_sparsity"] == ""
    gap = dict(zip(lines[0].split(","), lines[3].split(","), strict=True))
    assert (gap["clean"], gap["n"], gap["macs"], gap["status"]) == ("", "", "", "incomplete: training")
    seeds_lines = (folder / "leaderboard_seeds.csv").read_text().splitlines()
    assert seeds_lines[0].startswith(
        "benchmark,run,dataset,model,defenses,precision,seeds,n,clean_mean,clean_std,"
    )
    assert len(seeds_lines) == 3
    assert "| a | 0 |" in (folder / "leaderboard.md").read_text()
