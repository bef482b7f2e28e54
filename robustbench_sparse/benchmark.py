"""From a config to a leaderboard: train what is missing, judge what is missing, fold the table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_sparse.config.load import load, resolve
from robustbench_sparse.config.plan import Plan, RunPlan
from robustbench_sparse.config.yaml_reader import read as read_yaml
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.devices import choose_device, cpu_threads
from robustbench_sparse.foundation.errors import UserError, check_runs_exist, contained
from robustbench_sparse.foundation.files import locked, sha256, write_json
from robustbench_sparse.foundation.progress import Show, Silent
from robustbench_sparse.judging.relatives import Relative, Relatives, parent_of, twin_of
from robustbench_sparse.models.build import on_device
from robustbench_sparse.reporting import tables
from robustbench_sparse.runs import variants
from robustbench_sparse.runs.folder import RunFolder, locate
from robustbench_sparse.runs.manifest import manifest_of
from robustbench_sparse.runs.rebuild import rebuilt
from robustbench_sparse.training.preflight import check_runs
from robustbench_sparse.training.trainer import Trainer
from robustbench_sparse.verdict import judge_network

FOLDING_SHARE = 20  # the table on disk is renewed once the rows took so many times as long as folding it


def run_benchmark(
    config: str | Path | Mapping[str, Any],
    *,
    out: str | Path = "results",
    changes: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    limit: int | None = None,
    variant: str | None = None,
    replace: bool = False,
    show: Show | None = None,
) -> pd.DataFrame:
    """Train what is missing, evaluate what is missing, write and return the leaderboard.

    Args:
        config: a benchmark file, or its content as nested mappings.
        out: results go to ``<out>/<benchmark's name>/``; to ``<out>/<benchmark's name>@<change>/`` where ``changes``,
            ``seeds`` or ``limit`` give the table other rows or numbers. A trial touches no other table.
        changes: ``key.path=value`` assignments applied to the config.
        only: labels of runs to work on; all if empty.
        seeds: in place of the config's.
        device: ``auto``, ``cpu`` or ``cuda``.
        data_root: folder of the data sets.
        limit: judge only so many test images.
        variant: a name of your own for the changed table, in place of the changes.
        replace: let a changed config's table take the place of the one that is there.
        show: where progress goes.

    Returns:
        The leaderboard, one row per run and seed; also written as ``leaderboard.csv``.

    Raises:
        UserError: bad config, data or folder; nothing has been written then. Or a folder that holds the table of
            another config, which this one would not only add to.
        Busy: another process works on the same benchmark folder.
    """
    show = show or Silent()
    extra = list(changes)
    if seeds is not None:
        extra.append(f"seeds=[{','.join(map(str, seeds))}]")
    if limit is not None:
        extra.append(f"evaluation.limit={limit}")
    read = partial(resolve, dict(config)) if isinstance(config, Mapping) else partial(load, Path(config))
    plan = read(changes=extra)
    base: Plan | None = plan
    if extra:
        try:
            base = read()
        except UserError:  # only the changes make it whole
            base = None
    plan = variants.named(plan, base, extra, variant)
    folder = Path(out) / plan.config.name
    plan = variants.fitting(folder, plan, replace=replace)
    runs = _chosen(plan, only)
    target = choose_device(device)
    dataset = load_dataset(plan.dataset, data_root)
    data = plan.prepare(dataset, target)
    _check_fit(config, runs, data, plan)

    with locked(folder), cpu_threads(plan.config.threads):
        if variants.MARK in folder.name:
            show.note(f"a variant: its table is {folder}")
        _write_manifest(folder, plan, dataset)
        rows, due = [(seed, run) for seed in plan.config.seeds for run in runs], 0.0
        for number, (seed, run) in enumerate(rows, 1):
            place = locate(folder, plan, run, seed, dataset)
            _train(place, plan, run, data, show)
            kin = _relatives(folder, plan, run, seed, data, dataset, runs, show)
            _evaluate(place, plan, run, data, dataset, kin, show)
            # Folding takes longer the more rows there are; after every one of them it would cost minutes.
            began = time.monotonic()
            if number < len(rows) and began >= due:
                with contextlib.suppress(UserError):  # a row to come may need mending first
                    tables.write(folder)
                due = time.monotonic() + FOLDING_SHARE * (time.monotonic() - began)
        return tables.write(folder)


def _chosen(plan: Plan, only: Sequence[str]) -> list[RunPlan]:
    check_runs_exist(only, [r.label for r in plan.runs])
    return [r for r in plan.runs if not only or r.label in only]


def _check_fit(
    config: str | Path | Mapping[str, Any], runs: Sequence[RunPlan], data: PreparedData, plan: Plan
) -> None:
    """``check_runs``, with the file's name and the run's line before what does not fit."""
    for run in runs:
        try:
            check_runs([run], data, plan.threat)
        except UserError as e:
            if isinstance(config, Mapping):
                raise
            line = read_yaml(Path(config))[1].get(("runs", run.label), 1)
            raise UserError(f"{config}:{line}: {e}") from None


def _write_manifest(folder: Path, plan: Plan, dataset: Dataset) -> None:
    runs = [
        {"run_id": locate(folder, plan, run, seed, dataset).run_id, "run": run.label, "seed": seed}
        for run in plan.runs
        for seed in plan.config.seeds
    ]
    write_json(folder / "benchmark.json", manifest_of(plan, dataset, runs))


def _train(place: RunFolder, plan: Plan, run: RunPlan, data: PreparedData, show: Show) -> None:
    if place.training() is not None:
        place.checkpoint.unlink(missing_ok=True)  # of a process that was killed once training was stored
        return
    label = f"{run.label} s{place.seed}" if len(plan.config.seeds) > 1 else run.label
    folder = place.path.parent.parent
    if place.adopt(variants.siblings(folder), data.device):
        show.note(f"{label}: trained already, in another table of this benchmark")
        return
    for name in variants.changed_code(folder, place.facts["record"], run.label, place.seed):
        show.note(f"{label}: the code of {name} has changed since it was trained: trained anew")
    place.prepare(data.device)
    trainer = Trainer(run, data, plan.threat, place.seed, place.checkpoint, show, label)
    with contained(f"runs.{label}: training"):
        trained = trainer.train()
    place.store(trained)


def _relatives(
    folder: Path,
    plan: Plan,
    run: RunPlan,
    seed: int,
    data: PreparedData,
    dataset: Dataset,
    chosen: Sequence[RunPlan],
    show: Show,
) -> Relatives:
    """The row's relatives. One that is worked on anyway is trained first; another takes part if it is there."""
    by_label = {other.label: other for other in plan.runs}

    def find(source: str) -> Relative:
        if source not in by_label:
            path = Path(source)
            network = on_device(rebuilt(path, data.channels, data.size, data.classes), data.device)
            return Relative(source, lambda: network, sha256(path / "model.safetensors"))
        place = locate(folder, plan, by_label[source], seed, dataset)
        _train(place, plan, by_label[source], data, show)
        training = place.training()
        if training is None or training["status"] != "complete":
            raise UserError(f"runs.{source}: not trained to the end, so nothing can be made on it")
        return Relative(
            source,
            lambda: on_device(place.network(by_label[source], dataset), data.device),
            training["weights_sha256"],
        )

    def known(label: str | None) -> Relative | None:
        if label is None or plan.config.evaluation.certificate == "off":
            return None
        training = locate(folder, plan, by_label[label], seed, dataset).training()
        there = training is not None and training["status"] == "complete"
        return find(label) if there or (training is None and by_label[label] in chosen) else None

    return Relatives(
        twin=known(twin_of(plan, run)),
        undefended=not run.defenses and not run.sparsifies,
        parent=known(parent_of(plan, run)),
        find=find,
        seeds=len(plan.config.seeds),
    )


def _evaluate(
    place: RunFolder,
    plan: Plan,
    run: RunPlan,
    data: PreparedData,
    dataset: Dataset,
    kin: Relatives,
    show: Show,
) -> None:
    training = place.training()
    assert training is not None
    if training["status"] != "complete":
        show.note(f"{run.label}: {training['status']}: {training['reason']}")
        return
    model = place.network(run, dataset)
    counts = place.counts() or place.count(model, data.channels, data.size)
    if counts.get("refused"):
        show.note(f"{run.label}: refused: {counts['refused']}")
        return
    judge_network(
        on_device(model, data.device),
        plan,
        data,
        place.path,
        place.seed,
        # The run's id names the code that builds the network from its weights.
        f"{training['weights_sha256']}/{dataset.fingerprint}/{place.run_id}",
        show,
        f"{run.label} s{place.seed}" if len(plan.config.seeds) > 1 else run.label,
        kin,
    )
