"""From a config to a leaderboard: train what is missing, judge what is missing, write the table."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
import types
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from attacks.transfer import NOISE_OFF, Transfer
from robustbench_sparse.backends import backend_of
from robustbench_sparse.backends.base import Backend
from robustbench_sparse.certificate.checks import own_checks
from robustbench_sparse.config.dense_twins import with_widths
from robustbench_sparse.config.load import load, resolve
from robustbench_sparse.config.plan import Plan, RunPlan
from robustbench_sparse.config.yaml_reader import read as read_yaml
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation import shipped
from robustbench_sparse.foundation.devices import choose_device
from robustbench_sparse.foundation.errors import UserError, check_runs_exist
from robustbench_sparse.foundation.locks import check_idle, table_locked
from robustbench_sparse.foundation.progress import Progress, Silent
from robustbench_sparse.reporting import tables
from robustbench_sparse.runs import variants
from robustbench_sparse.runs.manifest import check_run_folder
from robustbench_sparse.runs.targets import images_of
from robustbench_sparse.training.logs import check_logs
from robustbench_sparse.training.preflight import check_runs
from robustbench_sparse.workers import Request
from robustbench_sparse.workspace import Workspace

TABLE_SHARE = 20  # the table on disk is renewed once the rows took so many times as long as making it


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
    jobs: int | None = None,
    backend: str | Backend = "local",
    log: Sequence[str] = (),
    show: Progress | None = None,
) -> pd.DataFrame:
    """Train what is missing, evaluate what is missing, write and return the leaderboard.

    Args:
        config: a benchmark file, the name of one that comes along (``quickstart``), or its content as nested mappings.
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
        jobs: rows worked on side by side at most, each in a process of its own; by default as many as the cores and
            the memory allow for (see ``pool.jobs_for``). The numbers are the same.
        backend: where rows are worked on: ``local``, ``ray`` or ``slurm``, or one of them with its settings. The
            numbers are the same.
        log: what trainings write while they last, below ``logs`` in the table's folder: ``csv``, ``tensorboard``.
        show: where progress goes.

    Returns:
        The leaderboard, one row per run and seed; also written as ``leaderboard.csv``.

    Raises:
        UserError: bad config, data or folder; nothing has been written then. Or a folder that holds the table of
            another config, which this one would not only add to.
        Busy: ``replace``, while another process works on the folder. Without it the two share the rows.
    """
    show = show or Silent()
    where = backend_of(backend, jobs=jobs) if isinstance(backend, str) else backend
    where.check()
    check_logs(log)
    config = config if isinstance(config, Mapping) else shipped.config(Path(config))
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
    _chosen(plan, only)
    # Elsewhere there may be other devices; this process computes nothing then.
    target = choose_device("cpu" if where.remote else device)
    dataset = load_dataset(plan.dataset, data_root)
    own_checks(plan.config.evaluation.checks)  # before anything is trained for them
    if plan.dataset.said():
        show.note(f"data: {plan.dataset.said()}")
    plan = with_widths(plan, **images_of(dataset))
    runs = _chosen(plan, only)
    data = plan.prepare(dataset, target)
    _check_fit(config, runs, data, plan)
    _check_sources(plan)

    work = Workspace(folder, plan, runs, dataset, data, show, tuple(log))
    if variants.MARK in folder.name:
        show.note(f"a variant: its table is {folder}")
    with table_locked(folder):
        if replace:
            check_idle(folder)
        variants.fitting(folder, plan, replace=replace)  # another process may have begun since
        work.describe()
    due = 0.0
    request = Request.of(config, work, extra, data_root, device if where.remote else None)
    last = len(work.rows())
    for number, _ in enumerate(where.work(work, request), 1):
        # Reading a table takes longer the more rows there are; after every one of them it would cost minutes.
        began = time.monotonic()
        if began >= due and number < last:  # after the last one it is written anyway
            with contextlib.suppress(UserError), table_locked(folder):  # a row to come may need mending first
                tables.write(folder)
            due = time.monotonic() + TABLE_SHARE * (time.monotonic() - began)
    with table_locked(folder):
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


def _check_sources(plan: Plan) -> None:
    """UserError for an attack whose source is a folder, but not that of a run."""
    labels = {NOISE_OFF, *(run.label for run in plan.runs)}
    for planned in plan.attacks:
        if isinstance(planned.attack, Transfer) and planned.attack.source not in labels:
            try:
                check_run_folder(Path(planned.attack.source))
            except UserError as e:
                raise UserError(f"attacks.{planned.label}.source: {e}") from None


class _Called(types.ModuleType):
    """This module under its second meaning: ``from robustbench_sparse import benchmark``, as people know it, gives a
    module, which has that name already; so the module can be called.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[float, float]:
        """``eval.benchmark``, which stands above this module and is looked up once it is called."""
        found: tuple[float, float] = importlib.import_module("robustbench_sparse.eval").benchmark(
            *args, **kwargs
        )
        return found


sys.modules[__name__].__class__ = _Called
