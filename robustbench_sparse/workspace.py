"""A benchmark at work: each of its rows trained, judged with its relatives, and certified."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import filelock

from attacks.base import is_stochastic
from robustbench_sparse.config.plan import Plan, RunPlan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.errors import UserError, contained
from robustbench_sparse.foundation.files import write_json
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.judging.relatives import Relative, Relatives, parent_of, twin_of
from robustbench_sparse.models.build import build_network, on_device
from robustbench_sparse.runs import names, variants
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import manifest_of
from robustbench_sparse.runs.record import locate
from robustbench_sparse.runs.targets import images_of
from robustbench_sparse.sparsity.counting import count_macs
from robustbench_sparse.training.trainer import Trainer
from robustbench_sparse.verdict import judge_network, judge_restorer

RANDOM_PASSES = 10  # averaged over, about, wherever a fixed network takes one


@dataclass(frozen=True)
class Workspace:
    """What every row of a benchmark shares.

    Attributes:
        folder: the benchmark's, held by this process or the one that started it.
        plan: the checked config.
        chosen: the runs that are worked on.
        dataset, data: as loaded, and as cut and moved.
        show: where progress goes.
        locks: a folder for the locks of rows that are worked on side by side; None where one process does all.
    """

    folder: Path
    plan: Plan
    chosen: Sequence[RunPlan]
    dataset: Dataset
    data: PreparedData
    show: Progress
    locks: Path | None = None

    def rows(self) -> list[tuple[RunPlan, int]]:
        """The runs to work on with their seeds, in order."""
        return [(run, seed) for seed in self.plan.config.seeds for run in self.chosen]

    def longest_first(self) -> list[tuple[RunPlan, int]]:
        """The same rows, those first that are likely to take longest: so that the last ones fill up what is left."""
        work = {run.label: self._work(run) for run in self.chosen}
        return sorted(self.rows(), key=lambda row: work[row[0].label], reverse=True)

    def _work(self, run: RunPlan) -> float:
        """A guess: the multiplications of a pass, times the passes of training and, of a random network, of judging."""
        defenses = [d.build() for d in run.defenses]
        data, classes = self.data, run.task.classes(self.data.classes)
        model = build_network(run.model, defenses, data.channels, data.size, classes, seed=0)
        passes = sum(s.config.epochs for s in run.stages) * (3 + 2 * sum(d.passes for d in defenses))
        judging = RANDOM_PASSES if is_stochastic(model) else 1
        return count_macs(model, self.data.channels, self.data.size) * passes * judging

    def describe(self) -> None:
        """Write what the leaderboard is made by."""
        rows = [
            {"run_id": self.place(run, seed).run_id, "run": run.label, "seed": seed}
            for run in self.plan.runs
            for seed in self.plan.config.seeds
        ]
        write_json(self.folder / names.BENCHMARK, manifest_of(self.plan, self.dataset, rows))

    def run(self, run: RunPlan, seed: int) -> None:
        """Train and judge a row, as far as that is not done yet."""
        place = self.place(run, seed)
        self._train(run, place)
        self._judge(run, place)

    def place(self, run: RunPlan, seed: int) -> RunFolder:
        """The row's folder."""
        return locate(self.folder, self.plan, run, seed, self.dataset)

    @cached_property
    def _by_label(self) -> dict[str, RunPlan]:
        return {run.label: run for run in self.plan.runs}

    def _title(self, place: RunFolder) -> str:
        return f"{place.label} s{place.seed}" if len(self.plan.config.seeds) > 1 else place.label

    # Training -------------------------------------------------------------------------------------------

    def _train(self, run: RunPlan, place: RunFolder) -> None:
        with self._alone(place):
            if place.training() is not None:
                # Of a process that was killed once training was stored.
                place.checkpoint.unlink(missing_ok=True)
                if place.lacks_snapshots():
                    why = (
                        f"trained before its snapshots were asked for: delete {place.path} to train it again"
                    )
                    self.show.note(f"{self._title(place)}: {why}")
            elif not self._adopted(place):
                self._train_anew(run, place)

    def _alone(self, place: RunFolder) -> AbstractContextManager[object]:
        """Hold a row's training: a row that needs another one waits for the process that trains it."""
        if self.locks is None:
            return contextlib.nullcontext()
        return filelock.FileLock(self.locks / f"{place.run_id}.lock")

    def _adopted(self, place: RunFolder) -> bool:
        device, title = self.data.device, self._title(place)
        if place.adopt(variants.siblings(self.folder), device):
            self.show.note(f"{title}: trained already, in another table of this benchmark")
            return True
        if place.adopt_last(device):
            self.show.note(f"{title}: trained already, as a row that keeps another epoch")
            return True
        return False

    def _train_anew(self, run: RunPlan, place: RunFolder) -> None:
        title = self._title(place)
        for name in variants.changed_code(self.folder, place.facts["record"], run.label, place.seed):
            self.show.note(f"{title}: the code of {name} has changed since it was trained: trained anew")
        if run.twin is not None:
            weights = f"{run.twin.weights} weights for the {run.twin.left} that it has left"
            self.show.note(f"{title}: dense twin of {run.twin.of}: {weights}")
        place.prepare(self.data.device)
        threat = self.plan.threat
        trainer = Trainer(run, self.data, threat, place.seed, place.checkpoint, self.show, title)
        with contained(f"runs.{title}: training"):
            trained = trainer.train()
        place.store(trained)

    # Judging --------------------------------------------------------------------------------------------

    def _judge(self, run: RunPlan, place: RunFolder) -> None:
        training = place.training()
        assert training is not None
        if training["status"] != "complete":
            self.show.note(f"{run.label}: {training['status']}: {training['reason']}")
            return
        kin = self._relatives(run, place.seed)
        model = place.network(**images_of(self.dataset))
        counts = place.counts() or place.count(model, self.data.channels, self.data.size)
        if counts.get("refused"):
            self.show.note(f"{run.label}: refused: {counts['refused']}")
            return
        model = on_device(model, self.data.device)
        # The run's id names the code that builds the network from its weights.
        identity = f"{training['weights_sha256']}/{self.dataset.fingerprint}/{place.run_id}"
        what = model, place, self.plan, self.data, self.show
        if self.plan.task.key == "restore":
            judge_restorer(*what, identity=identity, title=self._title(place))
        else:
            judge_network(*what, identity=identity, title=self._title(place), kin=kin)

    def _relatives(self, run: RunPlan, seed: int) -> Relatives:
        """The row's relatives. One that is worked on anyway is trained first; another takes part if it is there."""
        return Relatives(
            twin=self._known(twin_of(self.plan, run), seed),
            undefended=not run.defenses and not run.sparsifies,
            parent=self._known(parent_of(self.plan, run), seed),
            find=lambda source: self._find(source, seed),
            seeds=len(self.plan.config.seeds),
        )

    def _known(self, label: str | None, seed: int) -> Relative | None:
        if label is None or self.plan.config.evaluation.certificate == "off":
            return None
        run = self._by_label[label]
        place = self.place(run, seed)
        to_come = place.training() is None and run in self.chosen
        return self._find(label, seed) if to_come or place.complete() else None

    def _find(self, source: str, seed: int) -> Relative:
        """A row by its label, trained first if it has to be, or a run by its folder."""
        run = self._by_label.get(source)
        place = RunFolder.at(Path(source)) if run is None else self.place(run, seed)
        if run is not None:
            self._train(run, place)
        training = place.complete()
        if training is None:
            raise UserError(f"runs.{source}: not trained to the end, so nothing can be made on it")
        place.check_weights()
        return Relative(
            source,
            lambda: on_device(place.network(**images_of(self.dataset)), self.data.device),
            training["weights_sha256"],
        )
