"""Dense twins: as many weights as a sparse row has left, trained alike, known before anything trains."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from defenses.base import prunable
from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.config.dense_twins import with_widths
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import Plan, RunPlan
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.models import MODELS, ModelSpec
from robustbench_sparse.models.build import build_network
from robustbench_sparse.models.thinner import thinner
from robustbench_sparse.runs.manifest import table_of
from tests.helpers.small import small

PRUNE = {"name": "magnitude_prune", "sparsity": 90}


def config(
    model: Any = "lenet", defenses: Any = (PRUNE,), twin: Any = "sparse", **changes: Any
) -> dict[str, Any]:
    runs = {"sparse": {"defenses": list(defenses)}, "twin": {"dense_twin": twin}}
    return {
        "name": "t",
        "data": "digits",
        "model": model,
        "train": {"epochs": 2},
        "validation": 100,
        "runs": runs,
    } | changes


def planned(channels: int = 1, size: int = 28, **settings: Any) -> Plan:
    return with_widths(resolve(config(**settings)), channels, size, 10)


def rows(plan: Plan) -> tuple[RunPlan, RunPlan]:
    by_label = {run.label: run for run in plan.runs}
    return by_label["sparse"], by_label["twin"]


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as e:
        with_widths(resolve(raw), 1, 28, 10)
    assert "\n" not in str(e.value)
    return str(e.value)


def counted(spec: ModelSpec, channels: int = 1, size: int = 28) -> int:
    with torch.device("meta"):
        return sum(w.numel() for w in prunable(spec.build(channels, size, 10)).values())


def lenet(a: int, b: int, c: int, d: int) -> int:
    return 25 * a + 25 * a * b + 25 * b * c + c * d + 10 * d


def convnet(a: int, b: int, c: int) -> int:
    return 25 * a + 25 * a * b + 16 * b * c + 10 * c


def mlp(a: int, b: int) -> int:
    return 784 * a + a * b + 10 * b


def preact(a: int, b: int, c: int) -> int:  # depth 8 on colour images: one block a stage
    return 27 * a + 18 * a * a + (9 * a * b + 9 * b * b + a * b) + (9 * b * c + 9 * c * c + b * c) + 10 * c


def resnet18(w: int) -> int:
    stages = sum(9 * m * m // 2 + 9 * m * m * 3 + m * m // 2 for m in (2 * w, 4 * w, 8 * w))
    return 27 * w + 4 * 9 * w * w + stages + 10 * 8 * w


def vgg16(w: int) -> int:
    widths = [3, w, w, 2 * w, 2 * w, *[4 * w] * 3, *[8 * w] * 6]
    return sum(9 * a * b for a, b in itertools.pairwise(widths)) + 10 * 8 * w


# Network, setting with its widths, images, and the weights by hand.
NETWORKS = [
    ({"name": "lenet"}, "widths", (6, 16, 120, 84), (1, 28), lenet),
    ({"name": "convnet"}, "widths", (64, 64, 128), (1, 28), convnet),
    ({"name": "mlp", "hidden": [200, 80]}, "hidden", (200, 80), (1, 28), mlp),
    ({"name": "preact_resnet", "depth": 8}, "widths", (16, 32, 64), (3, 32), preact),
    ({"name": "resnet18"}, "width", (64,), (3, 32), resnet18),
    ({"name": "vgg16", "width": 32}, "width", (32,), (3, 32), vgg16),
]


@pytest.mark.parametrize("share", [50, 90, 99])
@pytest.mark.parametrize(
    ("entry", "setting", "full", "images", "count"),
    NETWORKS,
    ids=lambda v: getattr(v, "__name__", str(v)[:24]),
)
def test_a_twin_has_as_many_weights_as_whole_channels_allow(
    entry: Any, setting: str, full: tuple[int, ...], images: tuple[int, int], count: Any, share: int
) -> None:
    plan = planned(*images, model=entry, defenses=[{"name": "magnitude_prune", "sparsity": share}])
    sparse, twin = rows(plan)
    assert twin.twin is not None
    whole = count(*full)
    assert counted(sparse.model, *images) == whole
    assert twin.twin.left == whole - round(whole * share / 100)
    got = getattr(twin.model, setting)
    widths = got if isinstance(got, tuple) else (got,)
    assert twin.twin.weights == count(*widths) == counted(twin.model, *images)
    # Every multiplier there is, in steps finer than any two at which a width grows.
    some = [Fraction(n, 20_000) for n in range(20_001)]
    every = {tuple(max(1, int(w * m + Fraction(1, 2))) for w in full) for m in some}
    assert widths in every
    left = twin.twin.left
    assert abs(count(*widths) - left) == min(abs(count(*other) - left) for other in every)


def test_multipliers_are_exact_and_of_two_as_close_the_thinner_is_taken() -> None:
    spec = MODELS["mlp"](hidden=(4, 2))
    seen: list[tuple[int, ...]] = []

    def count(one: Any) -> int:
        seen.append(one.hidden)
        return sum(one.hidden)

    # By hand: 1/4 -> (1, 1); from 3/8 on (2, 1); 5/8 (3, 1); 3/4 (3, 2); 7/8 (4, 2).
    assert [thinner(spec, n, count).hidden for n in (2, 3, 4, 5, 6, 7)] == [
        (1, 1), (2, 1), (3, 1), (3, 2), (4, 2), (4, 2),
    ]  # fmt: skip
    assert set(seen) <= {(1, 1), (2, 1), (3, 1), (3, 2), (4, 2)}
    wide = MODELS["resnet18"](width=3)
    assert thinner(wide, 15, lambda one: 10 * one.width).width == 1  # type: ignore[attr-defined]
    assert thinner(wide, 16, lambda one: 10 * one.width).width == 2  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match=r"^left: expected at least the 10 weights of the thinnest one, got 9$"
    ):
        thinner(wide, 9, lambda one: 10 * one.width)  # type: ignore[attr-defined]


def test_a_twin_is_trained_as_its_row_but_for_what_makes_it_sparse() -> None:
    defenses = [
        {"name": "pgd_at", "steps": 2},
        {"name": "lasso", "lam": 1e-4, "stages": [0]},
        {**PRUNE, "stages": [1]},
    ]
    raw = config(
        defenses=defenses, train={"epochs": 2, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.05}}
    )
    stages = [
        {"epochs": 3, "optimizer": {"name": "proxsgd", "lam": 1e-3}},
        {"epochs": 1, "optimizer": {"lr": 0.02}},
    ]
    raw["runs"]["sparse"]["train"] = {"stages": stages}
    sparse, twin = rows(with_widths(resolve(raw), 1, 28, 10))
    assert [d.name for d in twin.defenses] == ["pgd_at"]
    assert not twin.sparsifies
    a, b = sparse.record(), twin.record()
    assert a["stages"][1] == b["stages"][1]
    assert [s["epochs"] for s in b["stages"]] == [3, 1]
    assert b["stages"][0].pop("optimizer") == {**b["stages"][1]["optimizer"], "lr": 0.05}
    assert a["stages"][0].pop("optimizer")["name"] == "proxsgd"
    assert a["stages"][0] == b["stages"][0]


def test_ensembles_are_counted_whole_and_stay_ensembles() -> None:
    resnet = {"name": "preact_resnet", "depth": 8}
    ensemble = {"name": "enresnet", "members": 2, "noise": 0.1}
    sparse, twin = rows(planned(3, 32, model=resnet, defenses=[ensemble, PRUNE]))
    alone = rows(planned(3, 32, model=resnet))[1]
    assert twin.twin is not None
    assert alone.twin is not None
    assert twin.twin.left == 2 * preact(16, 32, 64) - round(0.9 * 2 * preact(16, 32, 64))
    assert twin.model == alone.model
    assert twin.twin.weights == 2 * alone.twin.weights
    assert [d.name for d in twin.defenses] == ["enresnet"]
    assert sparse.model != twin.model


def test_the_share_is_of_the_layers_meant_and_what_is_projected_outdoes_a_goal() -> None:
    conv = rows(planned(defenses=[{"name": "magnitude_prune", "sparsity": 50, "layers": "conv"}]))[1].twin
    assert conv is not None
    convolutions = 25 * 6 + 25 * 6 * 16
    assert conv.left == lenet(6, 16, 120, 84) - convolutions // 2
    steered = {"name": "target_sparsity", "target": 95}
    optimizer = {"name": "proxsgd", "lam": 1e-3}
    raw = config(defenses=[steered])
    raw["runs"]["sparse"]["train"] = {"optimizer": optimizer}
    goal = rows(with_widths(resolve(raw), 1, 28, 10))[1].twin
    raw["runs"]["sparse"]["defenses"] = [steered, PRUNE]
    both = rows(with_widths(resolve(raw), 1, 28, 10))[1].twin
    whole = lenet(6, 16, 120, 84)
    assert goal is not None
    assert both is not None
    assert (goal.left, both.left) == (whole - round(0.95 * whole), whole - round(0.9 * whole))


def test_a_share_that_is_an_outcome_is_said_in_the_file() -> None:
    rgsm = {"name": "rgsm", "beta": 1.0, "lam": 0.5}
    said = refusal(config(defenses=[rgsm]))
    assert said.startswith(
        "runs.twin.dense_twin: what sparse leaves is known only once it is trained: expected its share"
    )
    twin = rows(planned(defenses=[rgsm], twin={"row": "sparse", "sparsity": 71.4}))[1].twin
    assert twin is not None
    whole = lenet(6, 16, 120, 84)
    assert twin.left == whole - round(0.714 * whole)


def test_the_id_depends_on_the_widths_and_the_table_on_what_the_file_says() -> None:
    one, other = (planned(twin={"row": "sparse", "sparsity": share}) for share in (90, 90.001))
    assert rows(one)[1].record() == rows(other)[1].record()
    assert "twin" not in str(rows(one)[1].record())
    assert table_of(one) != table_of(other)
    assert table_of(one) == table_of(resolve(config(twin={"row": "sparse", "sparsity": 90})))
    plain = resolve(
        config(runs={"twin": {"model": {"name": "lenet", "widths": list(rows(one)[1].model.widths)}}})
    )  # type: ignore[attr-defined]
    assert plain.runs[0].record() == rows(one)[1].record()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"twin": "spars"}, "runs.twin.dense_twin: expected one of sparse, got 'spars' (did you mean 'sparse'?)"),
        ({"twin": "twin"}, "runs.twin.dense_twin: expected a row that is no twin itself, got 'twin'"),
        ({"twin": {"row": "twin"}}, "runs.twin.dense_twin.row: expected a row that is no twin itself, got 'twin'"),
        ({"twin": {"row": "sparse", "sparsity": 100}}, "runs.twin.dense_twin.sparsity: expected less than 100"),
        ({"twin": {"of": "sparse"}}, "runs.twin.dense_twin.of: unknown key; there are: row, sparsity"),
        ({"twin": 3}, "runs.twin.dense_twin: expected a text, got 3"),
        ({"defenses": []}, "runs.twin.dense_twin: expected a row whose network becomes sparse, got 'sparse'"),
        ({"model": "fno"}, "runs.twin.dense_twin: expected a row with a network that can be made thinner, got fno"),
        ({"model": {"name": "mlp", "hidden": []}}, "runs.twin.dense_twin: model: expected a network with widths"),
        (
            {"defenses": [{"name": "magnitude_prune", "sparsity": 99.999}]},
            "runs.twin.dense_twin: left: expected at least the 86 weights of the thinnest one, got 1",
        ),
        (
            {"train": {"epochs": 2, "optimizer": {"name": "proxsgd", "lam": 1e-3}}},
            "runs.twin.train.optimizer: expected an optimizer for the dense twin: proxsgd makes weights zero",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_twin_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(config(**changes))


@pytest.mark.parametrize(("key", "value"), [("model", "lenet"), ("defenses", ["pgd_at"])])
def test_a_twin_has_no_network_or_defenses_of_its_own(key: str, value: Any) -> None:
    raw = config()
    raw["runs"]["twin"][key] = value
    assert f"runs.twin.{key}: expected none beside dense_twin" in refusal(raw)


def test_a_twin_has_a_training_of_its_own_where_the_file_says_so() -> None:
    raw = config(train={"epochs": 2, "optimizer": {"name": "proxsgd", "lam": 1e-3}})
    raw["runs"]["twin"]["train"] = {"optimizer": {"name": "sgd", "lr": 0.2}}
    twin = rows(with_widths(resolve(raw), 1, 28, 10))[1]
    assert twin.record()["stages"][0]["optimizer"]["name"] == "sgd"


@pytest.mark.slow
def test_rows_and_twins_stand_in_one_table_whoever_works_on_them(tmp_path: Path) -> None:
    model = {"name": "mlp", "hidden": [20, 10]}
    raw = small(name="twins", model=model, threads=1, evaluation={"limit": 20}, attacks={"fgsm": "fgsm"})
    raw["train"]["epochs"] = 1
    raw["train"]["augment"] = {}
    raw["runs"] = {"twin": {"dense_twin": "sparse"}, "sparse": {"defenses": [{**PRUNE, "sparsity": 60}]}}
    table = run_benchmark(raw, out=tmp_path / "one", device="cpu", jobs=1).set_index("run")
    again = run_benchmark(raw, out=tmp_path / "two", device="cpu", jobs=2).set_index("run")
    assert list(table["status"]) == ["ok", "ok"]
    assert table["worst"].equals(again["worst"])
    assert (
        run_benchmark(raw, out=tmp_path / "one", device="cpu")
        .set_index("run")["clean"]
        .equals(table["clean"])
    )
    whole = 64 * 20 + 20 * 10 + 10 * 10
    assert table.loc["twin", "weight_sparsity"] == 0
    assert table.loc["sparse", "weight_sparsity"] == pytest.approx(60)
    (folder,) = (tmp_path / "one" / "twins" / "runs").glob("twin-*")
    facts = read_json(folder / "run.json")
    a, b = facts["record"]["model"]["hidden"]
    twin = {
        "of": "sparse",
        "sparsity": None,
        "left": whole - round(0.6 * whole),
        "weights": 64 * a + a * b + 10 * b,
    }
    assert facts["dense_twin"] == twin
    spec = MODELS["mlp"](hidden=(a, b))
    assert counted(spec, 1, 8) == twin["weights"]
    assert sum(w.numel() for w in prunable(build_network(spec, [], 1, 8, 10, 0)).values()) == twin["weights"]
