"""Every method that makes zeros, once, as a config trains it: what is told of its zeros is what its file has."""

from __future__ import annotations

import io
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from defenses import DEFENSES
from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.cli import main as cli
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.optimizers import OPTIMIZERS
from robustbench_sparse.judging.relatives import parent_of, twin_of
from tests.helpers import forks

PERCEPTRON = {"name": "mlp", "hidden": [32], "batch_norm": True}
HALF = {"name": "magnitude_prune", "sparsity": 50.0}


def optimised(name: str, *defenses: Any, **settings: Any) -> dict[str, Any]:
    return {"defenses": list(defenses), "train": {"optimizer": {"name": name, **settings}}}


def then(*defenses: Any, **first: Any) -> dict[str, Any]:
    """Two stages, the first with a change."""
    return {"defenses": list(defenses), "train": {"stages": [{**first}, {"epochs": 2}]}}


def scored(name: str, **settings: Any) -> dict[str, Any]:
    """Three stages of one epoch, the mask searched for in the second."""
    defense = {"name": name, "sparsity": 80.0, "stages": [1, 2], **settings}
    return {"defenses": [defense], "train": {"epochs": 1, "stages": [{}, {}, {}]}}


RUNS: dict[str, dict[str, Any]] = {
    "dense": {},
    "robust": {"defenses": [{"name": "pgd_at", "steps": 1}]},
    "dense_mlp": {"model": PERCEPTRON},
    "rgsm": {"defenses": [{"name": "rgsm", "beta": 1.0, "lam": 0.4}]},
    "rvsm": {"defenses": [{"name": "rvsm", "beta": 1.0, "lam": 0.02, "regulariser": "l0"}]},
    "rvsm_target": {
        "defenses": [{"name": "rvsm", "beta": 1.0, "lam": 0.05, "layers": "all", "target_sparsity": 70.0}]
    },
    "rvscgd": {"defenses": [{"name": "rvscgd", "beta": 1.0, "lam": 0.02}]},
    "admm": {"defenses": [{"name": "admm", "sparsity": 60.0, "layers": "all"}]},
    "admm_channels": {"defenses": [{"name": "admm", "sparsity": 50.0, "group": "channel"}]},
    "lasso": {"defenses": [{"name": "lasso", "lam": 1e-3, "sparsity": 75.0}]},
    "prune": {"defenses": [{"name": "magnitude_prune", "sparsity": 80.0}]},
    "prune_kernels": {"defenses": [{**HALF, "group": "kernel", "layers": "conv", "scope": "layer"}]},
    "ticket": {"defenses": [{**HALF, "rounds": 2, "rewind": "start"}], "train": {"select_after": 1}},
    "prune_robust": {"defenses": [{"name": "pgd_at", "steps": 1}, HALF]},
    "dense_then_prune": then({**HALF, "stages": [1]}),
    "filters": then({"name": "l1_filter_prune", "sparsity": 50.0, "stages": [1]}),
    "slimming": {
        "model": PERCEPTRON,
        **then(
            {"name": "network_slimming", "lam": 1e-3, "stages": [0]},
            {"name": "network_slimming", "sparsity": 50.0, "stages": [1]},
        ),
    },
    "proxsgd_then_hold": then(
        {"name": "hold_zeros", "stages": [1]}, optimizer={"name": "proxsgd", "lr": 0.1, "lam": 0.01}
    ),
    "hydra": scored("hydra"),
    "s2ap": scored("s2ap", gamma=0.1),
    "set": then({"name": "set", "sparsity": 80.0}),
    "rigl": then({"name": "rigl", "sparsity": 80.0, "every": 4}),
    "flying_bird": then({"name": "flying_bird", "sparsity": 80.0, "every": 3}),
    "linbreg": optimised(
        "linbreg", {"name": "sparse_init", "density": 0.2}, lr=0.1, lam=0.05, momentum=0.9, conv="group_lasso"
    ),
    "linbreg_target": optimised("linbreg", {"name": "target_sparsity", "target": 90.0}, lr=0.1, lam=0.05),
    "linbreg_robust": optimised("linbreg", {"name": "pgd_at", "steps": 1}, lr=0.1, lam=0.2),
    "adabreg": optimised("adabreg", {"name": "sparse_init", "density": 0.2}, lr=0.01, lam=0.05),
    "proxsgd": {
        "model": PERCEPTRON,
        **optimised("proxsgd", {"name": "target_sparsity", "target": 50.0, "kind": "row"}, lr=0.1, lam=0.05),
    },
}
# What is asked for: kind, percent, and whether it has to be met.
ASKED: dict[str, tuple[str, float, bool]] = {
    "rvsm_target": ("weight", 70.0, False),
    "admm": ("weight", 60.0, True),
    "admm_channels": ("channel", 50.0, True),
    "lasso": ("weight", 75.0, True),
    "prune": ("weight", 80.0, True),
    "prune_kernels": ("kernel", 50.0, True),
    "ticket": ("weight", 50.0, True),
    "prune_robust": ("weight", 50.0, True),
    "dense_then_prune": ("weight", 50.0, True),
    "filters": ("row", 50.0, True),
    "slimming": ("row", 50.0, True),
    **dict.fromkeys(("hydra", "s2ap", "set", "rigl", "flying_bird"), ("weight", 80.0, True)),
    "linbreg_target": ("weight", 90.0, False),
    "proxsgd": ("row", 50.0, False),
}
TWINS: dict[str, str | None] = {
    "dense": None,
    "dense_mlp": None,
    "slimming": "dense_mlp",
    "proxsgd": "dense_mlp",
}
PARENTS: dict[str, str | None] = {
    **dict.fromkeys(("dense", "dense_mlp", "robust")),
    **dict.fromkeys(("prune_robust", "linbreg_robust"), "robust"),
    **dict.fromkeys(("slimming", "proxsgd"), "dense_mlp"),
}
DENSE = ("dense", "robust", "dense_mlp")
SHARES = ("weight", "linear", "channel", "kernel", "row")


def config(name: str = "zeros", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "data": {"name": "digits"},
        "validation": 100,
        "train_limit": 300,
        "attacks": {"fgsm": "fgsm"},
        "threat": {"norm": "linf", "eps": 0.1},
        "evaluation": {"limit": 16},
        "model": {"name": "preact_resnet", "depth": 8, "widths": [4, 8, 8]},
        "train": {
            "epochs": 3,
            "batch_size": 60,
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
            "selection": "last",
        },
        "runs": RUNS,
        **changes,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    run_benchmark(config(), out=out, device="cpu")
    return out / "zeros"


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, dict[str, Any]]:
    table = pd.read_csv(folder / "leaderboard.csv", keep_default_na=True)
    return {row["run"]: row for row in table.to_dict("records")}  # type: ignore[misc]


def weights_of(folder: Path, row: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of linear layers (2 dimensions) and convolutions (4) in a run's file, by the layer's name."""
    stored = load_file(folder / "runs" / row["run_id"] / "model.safetensors")
    return {k.removesuffix(".weight"): w for k, w in stored.items() if k.endswith("weight") and w.ndim > 1}


def zeros_by_hand(kind: str, w: Tensor) -> tuple[int, int]:
    """How many weights, input channels, kernels or rows of a weight are zero, and how many there are."""
    if kind in ("weight", "linear"):
        counted = w if kind == "weight" or w.ndim == 2 else w[:0]
    elif kind == "row":
        counted = w.abs().flatten(1).amax(1)
    elif w.ndim == 2:
        return 0, 0
    else:
        counted = w.abs().amax((0, 2, 3) if kind == "channel" else (2, 3))
    return int((counted == 0).sum()), counted.numel()


def share_by_hand(kind: str, weights: dict[str, Tensor]) -> float:
    counts = [zeros_by_hand(kind, w) for w in weights.values()]
    whole = sum(n for _, n in counts)
    return 100 * sum(z for z, _ in counts) / whole if whole else math.nan


def test_the_benchmark_has_every_method() -> None:
    runs = RUNS.values()
    named = {d["name"] for run in runs for d in run.get("defenses", [])}
    assert {key for key, cls in DEFENSES.items() if cls.sparsifies} <= named
    trains = [t for run in runs for t in (run.get("train", {}), *run.get("train", {}).get("stages", []))]
    used = {t["optimizer"]["name"] for t in trains if "optimizer" in t}
    assert {key for key, cls in OPTIMIZERS.items() if cls.sparsifies} <= used


@pytest.mark.parametrize("label", RUNS)
def test_the_leaderboard_has_what_the_file_has(
    label: str, folder: Path, rows: dict[str, dict[str, Any]]
) -> None:
    row, weights = rows[label], weights_of(folder, rows[label])
    assert row["status"] == "ok"
    for kind in SHARES:
        assert row[f"{kind}_sparsity"] == pytest.approx(share_by_hand(kind, weights), abs=1e-4, nan_ok=True)
    assert (row["weight_sparsity"] > 1) == (label not in DENSE)
    assert row["weight_sparsity"] < 100
    assert 0 <= row["worst"] <= row["clean"] <= 100


@pytest.mark.parametrize("label", RUNS)
def test_what_was_asked_for_stands_beside_what_is_there(
    label: str, folder: Path, rows: dict[str, dict[str, Any]]
) -> None:
    text = rows[label]["asked"]
    if label not in ASKED:
        assert pd.isna(text)
        return
    kind, percent, binding = ASKED[label]
    written, achieved = text.split(": ")
    assert written.split()[0] == kind
    assert float(written.split()[1]) == pytest.approx(percent, abs=2.0 if kind == "row" else 0.1)
    training = json.loads((folder / "runs" / rows[label]["run_id"] / "training.json").read_text())
    (asked,) = training["asked"]
    assert asked["binding"] == binding
    weights = weights_of(folder, rows[label])
    meant = {name.removesuffix(".weight"): weights[name.removesuffix(".weight")] for name in asked["names"]}
    by_hand = share_by_hand(kind, meant)
    assert float(achieved) == pytest.approx(by_hand, abs=0.01)
    if binding:
        whole = sum(zeros_by_hand(kind, w)[1] for w in meant.values())
        piece = 100 * len(meant) / whole  # the share of each layer is rounded to whole pieces
        assert by_hand == pytest.approx(asked["percent"], abs=piece), "no less, and hardly more"


@pytest.mark.parametrize("label", RUNS)
def test_history_layers_and_file_agree(label: str, folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    home = folder / "runs" / rows[label]["run_id"]
    history, layers = (
        pd.read_csv(home / f"{name}.csv", dtype={"name": str}) for name in ("history", "layers")
    )
    stages = RUNS[label].get("train", {}).get("stages", [{}])
    each = RUNS[label].get("train", {}).get("epochs", 3)
    epochs = [(i, e) for i, stage in enumerate(stages) for e in range(stage.get("epochs", each))]
    assert list(zip(history["stage"], history["epoch"], strict=True)) == epochs
    groups = layers.groupby(["stage", "epoch"])
    assert sorted(groups.groups) == epochs
    for row in history.to_dict("records"):
        of = groups.get_group((row["stage"], row["epoch"]))
        assert row["l1_norm"] == pytest.approx(of["l1_norm"].sum(), rel=1e-9)
        for kind in ("weight", "channel", "kernel", "row"):
            whole = of[f"{kind}s"].sum()
            share = 100 * of[f"zero_{kind}s"].sum() / whole if whole else math.nan
            assert row[f"{kind}_sparsity"] == pytest.approx(share, nan_ok=True)
    weights, last = weights_of(folder, rows[label]), groups.get_group(epochs[-1]).set_index("name")
    assert set(last.index) == set(weights)
    for name, w in weights.items():
        assert last.loc[name, "l1_norm"] == pytest.approx(w.double().abs().sum().item(), rel=1e-6)
        for kind in ("weight", "channel", "kernel", "row"):
            assert (last.loc[name, f"zero_{kind}s"], last.loc[name, f"{kind}s"]) == zeros_by_hand(kind, w)
    assert rows[label]["train_accuracy"] == pytest.approx(history["train_accuracy"].iloc[-1], abs=1e-4)
    assert 10 < rows[label]["train_accuracy"] <= 100


def test_steered_lambdas_move_towards_the_target(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    for label, column in (
        ("linbreg_target", "target_sparsity.lam"),
        ("proxsgd", "target_sparsity.lam"),
        ("rvsm_target", "rvsm.lam"),
    ):
        kind, target, _ = ASKED[label]
        history = pd.read_csv(folder / "runs" / rows[label]["run_id"] / "history.csv")
        lam, share = history[column].tolist(), history[f"{kind}_sparsity"].tolist()
        assert len(set(lam)) == 3, lam
        for before, after, had in zip(lam, lam[1:], share, strict=False):
            assert (after > before) == (had < target)


def test_relatives_are_dense() -> None:
    plan = resolve(config())
    for run in plan.runs:
        twin, parent = twin_of(plan, run), parent_of(plan, run)
        assert twin == TWINS.get(run.label, "dense"), run.label
        assert parent == PARENTS.get(run.label, "dense"), run.label
        assert {twin, parent} <= {*DENSE, None}
        assert run.sparsifies == (run.label not in DENSE)
    # However the sparse rows come first.
    backwards = resolve(config(runs=dict(reversed(RUNS.items()))))
    for run in backwards.runs:
        assert twin_of(backwards, run) == TWINS.get(run.label, "dense")
        assert parent_of(backwards, run) == PARENTS.get(run.label, "dense")


# The command line --------------------------------------------------------------------------------------------


def history(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.app, ["history", *map(str, arguments)])


def test_history_on_the_command_line(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    shown = history(folder)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["run", "epoch", "train_accuracy", "val_accuracy", "l1_norm", "nonzero"]
    assert {line.split()[0] for line in lines[1:] if line} == set(RUNS)
    last = next(line for line in reversed(lines) if line.startswith("prune "))
    assert float(last.split()[-1]) == pytest.approx(100 - rows["prune"]["weight_sparsity"], abs=0.01)

    means = pd.read_csv(io.StringIO(history(folder, "--format", "csv", "--only", "linbreg").stdout))
    assert means["run"].tolist() == ["linbreg"] * 3
    assert means["passed"].tolist() == [1, 2, 3]
    assert means["seeds"].tolist() == [1] * 3
    own = pd.read_csv(folder / "runs" / rows["linbreg"]["run_id"] / "history.csv")
    assert means["l1_norm_mean"].tolist() == pytest.approx(own["l1_norm"].tolist())
    assert means["nonzero_mean"].tolist() == pytest.approx((100 - own["weight_sparsity"]).tolist())
    assert means["l1_norm_std"].isna().all()

    seeds = pd.read_csv(
        io.StringIO(history(folder, "--format", "csv", "--seeds", "--only", "filters").stdout)
    )
    assert seeds["passed"].tolist() == [1, 2, 3, 4, 5]
    assert seeds["seed"].tolist() == [0] * 5
    assert seeds["stage"].tolist() == [0, 0, 0, 1, 1]

    layers = pd.read_csv(
        io.StringIO(history(folder, "--format", "csv", "--layers", "--only", "prune").stdout)
    )
    weights = weights_of(folder, rows["prune"])
    of_last = layers[layers["passed"] == 3].set_index("layer")["nonzero_mean"]
    assert set(of_last.index) == set(weights)
    for name, w in weights.items():
        assert of_last[name] == pytest.approx(100 * (w != 0).double().mean().item())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--only", "linbrag"], "linbreg"),
        (["--format", "json"], "json"),
        (["--layers"], "--format csv"),
        (["--seeds"], "--format csv"),
        (["--layers", "--format", "csv", "--plot", "x.png"], "--plot"),
        (["--plot", "x.nothing"], "x.nothing"),
    ],
)
def test_history_refuses_in_one_line(arguments: list[str], part: str, folder: Path) -> None:
    result = history(folder, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr


def test_history_of_nothing(tmp_path: Path) -> None:
    result = history(tmp_path / "nowhere")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "nowhere" in result.stderr


# Killed and resumed ------------------------------------------------------------------------------------------

LONG: dict[str, Any] = {
    "linbreg": RUNS["linbreg_target"],
    "ticket": {"defenses": [{**HALF, "sparsity": 80.0, "rounds": 3, "every": 2, "rewind": "start"}]},
}


def command(path: Path, out: Path) -> list[str]:
    return ["run", str(path), "--out", str(out), "--device", "cpu"]


def killed_after(path: Path, out: Path, label: str, epochs: int) -> None:
    """Run, and kill with -9 once so many epochs of a run have been stored in this sitting."""
    process = forks.start(command(path, out))
    deadline, stored = time.monotonic() + 120, set[int]()
    while len(stored) < epochs:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the moment never came"
        stored |= {p.stat().st_mtime_ns for p in out.glob(f"long/runs/{label}-*/checkpoint.pt")}
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(out.glob(f"long/runs/{label}-*/training.json"))


def left(out: Path) -> dict[str, Any]:
    """What trainings left, without the seconds."""
    found: dict[str, Any] = {}
    for home in sorted(out.glob("long/runs/*")):
        for name in ("model.safetensors", "history.csv", "layers.csv", "sparsity.json"):
            found[f"{home.name}/{name}"] = (home / name).read_bytes()
        training = json.loads((home / "training.json").read_text())
        found[home.name] = {k: v for k, v in training.items() if k != "train_seconds"}
    return found


def test_killed_and_resumed_they_end_as_unbroken(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    raw = config("long", runs=LONG, attacks={}, train_limit=600)
    raw["train"]["epochs"] = 6
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    run_benchmark(path, out=tmp_path / "unbroken", device="cpu")
    unbroken = left(tmp_path / "unbroken")
    out = tmp_path / "broken"
    killed_after(path, out, "linbreg", 3)
    killed_after(path, out, "ticket", 3)  # between the second round and the third
    state = torch.load(next(out.glob("long/runs/ticket-*/checkpoint.pt")), weights_only=True)
    assert 2 <= state["epoch"] < 5
    done = forks.run(command(path, out))
    assert done.returncode == 0, done.stderr
    assert left(out) == unbroken
    assert len(unbroken) == 10
    for label, share in (("linbreg", 0), ("ticket", 80)):
        (home,) = (tmp_path / "unbroken").glob(f"long/runs/{label}-*")
        assert pd.read_csv(home / "history.csv")["weight_sparsity"].iloc[-1] > share - 0.1
