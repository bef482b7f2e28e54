"""Which rows have to be trained before which, and what each takes of a machine."""

from __future__ import annotations

from collections.abc import Mapping

from attacks.transfer import Transfer
from robustbench_sparse.backends.base import Unit
from robustbench_sparse.config.plan import RunPlan
from robustbench_sparse.judging.relatives import parent_of, twin_of
from robustbench_sparse.workspace import Workspace


def units_of(work: Workspace) -> list[Unit]:
    """The rows of a benchmark as units, those first that are likely to take longest."""
    rows = work.longest_first()
    ids = {(run.label, seed): work.place(run, seed).run_id for run, seed in rows}
    needs = sources_of(work)
    return [
        unit_of(work, run, seed, ids[run.label, seed], [ids[label, seed] for label in needs[run.label]])
        for run, seed in rows
    ]


def unit_of(work: Workspace, run: RunPlan, seed: int, run_id: str, needs: list[str]) -> Unit:
    """One row with what its ``resources`` ask for."""
    asked = work.plan.config.resources_of(run.label)
    return Unit(
        run_id=run_id,
        label=run.label,
        seed=seed,
        cpus=work.threads_of(run) if asked.cpus is None else asked.cpus,
        gpus=asked.gpus,
        memory=asked.memory,
        minutes=asked.minutes,
        slurm=tuple(asked.slurm.items()),
        needs=tuple(needs),
        shards=work.plan.config.evaluation.shards,
    )


def sources_of(work: Workspace) -> dict[str, list[str]]:
    """Of every run that is worked on the others whose networks it is judged with.

    Those of a transfer attack; of a certificate also the dense parent and the undefended twin. Of runs that need each
    other one comes first, and trains the other itself.
    """
    labels = [run.label for run in work.chosen]
    borrowed = [p.attack.source for p in work.plan.attacks if isinstance(p.attack, Transfer)]
    certified = work.plan.config.evaluation.certificate != "off"
    needs: dict[str, list[str]] = {label: [] for label in labels}
    for run in work.chosen:
        kin = [parent_of(work.plan, run), twin_of(work.plan, run)] if certified else []
        for source in dict.fromkeys([*kin, *borrowed]):
            if source in needs and source != run.label and not _reaches(needs, source, run.label):
                needs[run.label].append(source)
    return needs


def _reaches(needs: Mapping[str, list[str]], start: str, goal: str) -> bool:
    """Whether a run needs another one, by whatever way."""
    seen, ahead = {start}, [start]
    while ahead:
        here = ahead.pop()
        if here == goal:
            return True
        fresh = [label for label in needs[here] if label not in seen]
        seen.update(fresh)
        ahead += fresh
    return False
