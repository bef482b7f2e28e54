"""From a config to a leaderboard: train what is missing, judge what is missing, fold the table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as changed
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from attacks.base import is_stochastic
from robustbench_sparse import leaderboard, variants
from robustbench_sparse.certificate.examination import Examination
from robustbench_sparse.config import load, resolve
from robustbench_sparse.data.base import DataError, Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.devices import choose_device, cpu_threads
from robustbench_sparse.errors import UserError, check_runs_exist, contained, one_line
from robustbench_sparse.files import locked, plain, sha256, write_json
from robustbench_sparse.fitting import check_runs
from robustbench_sparse.judge import Judge, Protocol
from robustbench_sparse.plan import Plan, RunPlan
from robustbench_sparse.progress import Show, Silent
from robustbench_sparse.relatives import Relative, Relatives, parent_of, twin_of
from robustbench_sparse.runs import RunFolder, locate
from robustbench_sparse.sparsity import count_macs
from robustbench_sparse.speed import Speed, for_attacks, recorded
from robustbench_sparse.stored import rebuilt
from robustbench_sparse.streams import derive
from robustbench_sparse.train import Trainer, on_device
from robustbench_sparse.yaml_numbers import read as read_yaml

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
    dataset = load_dataset(plan, data_root)
    data = prepare_data(plan, dataset, target)
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
                    leaderboard.write(folder)
                due = time.monotonic() + FOLDING_SHARE * (time.monotonic() - began)
        return leaderboard.write(folder)


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


def load_dataset(plan: Plan, data_root: str | Path | None) -> Dataset:
    """The plan's data set; UserError where it is missing or damaged."""
    root = Path(data_root) if data_root is not None else None
    if root is not None and not root.is_dir():
        raise UserError(f"--data-root {root}: no such folder")
    try:
        return plan.dataset.load(root, None)
    except DataError as e:
        raise UserError(f"data: {e}") from None


def prepare_data(plan: Plan, dataset: Dataset, device: torch.device) -> PreparedData:
    """The data set split, cut and moved as the plan says; UserError where it is too small for that."""
    c = plan.config
    try:
        return PreparedData(
            dataset,
            validation=c.validation,
            device=device,
            train_limit=c.train_limit,
            test_limit=c.evaluation.limit,
        )
    except ValueError as e:
        raise UserError(f"data: {one_line(e)}") from None


def _write_manifest(folder: Path, plan: Plan, dataset: Dataset) -> None:
    runs = [
        {"run_id": locate(folder, plan, run, seed, dataset).run_id, "run": run.label, "seed": seed}
        for run in plan.runs
        for seed in plan.config.seeds
    ]
    write_json(folder / "benchmark.json", manifest_of(plan, dataset, runs))


def manifest_of(plan: Plan, dataset: Dataset, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the leaderboard is folded by: the attacks, the threat and the rows, ``run_id``, ``run``, ``seed`` each."""
    return {
        "name": plan.config.name,
        "source": plan.config.source,
        "dataset": dataset.label,
        "attacks": [a.label for a in plan.attacks],
        "settings": {a.label: plain(a.record()) for a in plan.attacks},
        "threat": plan.config.threat.model_dump(),
        "certificate": plan.config.evaluation.certificate,
        "table": variants.table_of(plan),
        "runs": runs,
        "published": plan.published,
    }


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


def judge_network(
    model: nn.Module,
    plan: Plan,
    data: PreparedData,
    folder: Path,
    seed: int,
    identity: str,
    show: Show,
    title: str,
    kin: Relatives | None = None,
    gate: Callable[[pd.DataFrame], None] | None = None,
) -> None:
    """Judge a network under all attacks of a plan; ``folder`` keeps outcomes and what was chosen for speed.

    Args:
        model: the network in eval mode, on the data's device.
        plan: holds the attacks and how to judge.
        data: holds the test images.
        folder: the run's.
        seed: the run's.
        identity: names the weights and the data set.
        show, title: where progress goes, and under which name.
        kin: other networks that some attacks and checks need.
        gate: sees the verdicts on clean images before anything is attacked, and may raise.
    """
    c, kin = plan.config.evaluation, kin or Relatives()
    attacks = [kin.bound(a) for a in plan.attacks]
    x = data.gather("test", torch.arange(min(data.count("test"), 512)))[0]

    def choose() -> Speed:
        random = is_stochastic(model)
        passes = sum(a.attack.cost * (int(getattr(a.attack, "eot", 1)) if random else 1) for a in attacks)
        work = float(passes) * data.count("test") * count_macs(model, data.channels, data.size)
        size = None if c.batch_size == "auto" else c.batch_size
        return for_attacks(model, x, work, precision=c.precision, compile=c.compile, batch_size=size)

    asked = f"attacks {c.precision} {c.compile} {c.batch_size}"
    with contained(f"{title}: measuring its speed"):
        speed = recorded(folder / "speed.json", asked, choose)
    protocol = Protocol(
        seed=derive(seed, "evaluation"),
        batch_size=speed.batch_size,
        draws=c.draws,
        precision=speed.precision,
    )
    judge = Judge(model, data, folder / "outcomes", protocol, identity, show, title)
    examination = Examination(judge, attacks, c.certificate, plan.threat, kin)
    done = judge.all_done(attacks) and examination.is_done()
    if gate is not None or not done:
        clean = judge.clean()
        if len(clean) < data.count("test"):
            return  # it crashed, and the outcome says how
        if gate is not None:
            gate(clean)
    if done:
        judge.tidy()
        examination.tidy()
        return
    with contained(f"{title}: compiling it"):
        stand_in, note = speed.stand_in(model, x[: speed.batch_size])
    if note:
        show.note(f"{title}: {note}")
    if stand_in is None:
        protocol = changed(protocol, precision="fp32")
    judge = Judge(model, data, folder / "outcomes", protocol, identity, show, title, stand_in)
    judge.everything(attacks)
    examination = Examination(judge, attacks, c.certificate, plan.threat, kin)
    examination.make()
    examination.tidy()
