"""What a unit needs and takes, as a config has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_sparse.backends.order import sources_of, units_of
from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.workspace import Workspace
from tests.helpers.small import small

SPARSE = {"defenses": [{"name": "pgd_at", "steps": 2}, {"name": "magnitude_prune", "sparsity": 50}]}
RUNS: dict[str, Any] = {
    "sparse": SPARSE,
    "robust": {"defenses": [{"name": "pgd_at", "steps": 2}]},
    "natural": {},
}


def work_of(only: tuple[str, ...] = (), **changes: Any) -> Workspace:
    raw = small(model={"name": "mlp", "hidden": [8]}, runs=RUNS, threads=1, **changes)
    plan = resolve(raw)
    dataset = load_dataset(plan.dataset, None)
    data = plan.prepare(dataset, torch.device("cpu"))
    chosen = [run for run in plan.runs if not only or run.label in only]
    return Workspace(Path("none"), plan, chosen, dataset, data, Silent())


def borrowed(*sources: str) -> dict[str, Any]:
    return {"attacks": {s: {"name": "transfer", "source": s, "steps": 2} for s in sources}}


def test_relatives_are_needed_where_there_is_a_certificate() -> None:
    assert sources_of(work_of()) == {"sparse": [], "robust": [], "natural": []}
    certified = work_of(evaluation={"limit": 20, "certificate": "quick"})
    assert sources_of(certified) == {"sparse": ["robust", "natural"], "robust": ["natural"], "natural": []}
    some = work_of(only=("sparse", "natural"), evaluation={"limit": 20, "certificate": "quick"})
    assert sources_of(some) == {"sparse": ["natural"], "natural": []}, "of those that are worked on"


def test_sources_of_transfers_are_needed_and_never_in_a_circle() -> None:
    assert sources_of(work_of(**borrowed("robust"))) == {
        "sparse": ["robust"],
        "robust": [],
        "natural": ["robust"],
    }
    circle = sources_of(work_of(**borrowed("sparse", "robust", "natural")))
    assert circle == {"sparse": ["robust", "natural"], "robust": ["natural"], "natural": []}


def test_units_take_what_their_row_asks_for() -> None:
    runs = {**RUNS, "robust": {**RUNS["robust"], "resources": {"gpus": 0.5, "memory": 2}}}
    raw = small(
        runs=runs, model={"name": "mlp", "hidden": [8]}, seeds=[0, 1],
        resources={"cpus": 3, "gpus": 1, "slurm": {"partition": "long"}}, **borrowed("natural"),
    )  # fmt: skip
    plan = resolve(raw)
    dataset = load_dataset(plan.dataset, None)
    work = Workspace(
        Path("none"), plan, plan.runs, dataset, plan.prepare(dataset, torch.device("cpu")), Silent()
    )
    units = {(u.label, u.seed): u for u in units_of(work)}
    assert len(units) == 6
    robust, natural = units["robust", 1], units["natural", 1]
    assert (robust.cpus, robust.gpus, robust.memory) == (3, 0.5, 2)
    assert (natural.cpus, natural.gpus, natural.memory) == (3, 1, None)
    assert robust.slurm == (("partition", "long"),)
    assert robust.needs == (natural.run_id,)
    assert work.threads_of(plan.runs[0]) == 3
    assert robust.run_id == work.place(plan.runs[1], 1).run_id
    # What a row takes is no part of its id.
    assert robust.run_id == plan_without(raw, 1).run_id


def plan_without(raw: dict[str, Any], seed: int) -> Any:
    raw = {**raw, "resources": {}, "runs": RUNS}
    plan = resolve(raw)
    dataset = load_dataset(plan.dataset, None)
    work = Workspace(
        Path("none"), plan, plan.runs, dataset, plan.prepare(dataset, torch.device("cpu")), Silent()
    )
    return work.place(plan.runs[1], seed)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"gpus": 1.5}, "resources.gpus: expected a whole number, or a part of one, got 1.5"),
        ({"cpus": 0}, "resources.cpus"),
        ({"memory": -1}, "resources.memory"),
        ({"gpu": 1}, "resources.gpu: unknown key (did you mean 'gpus'"),
        ({"slurm": {"partition": []}}, "resources.slurm.partition"),
    ],
)
def test_resources_that_are_none(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as e:
        resolve(small(resources=resources))
    assert said in str(e.value)
