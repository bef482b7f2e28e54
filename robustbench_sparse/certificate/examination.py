"""One row's certificate: what it depends on, the images it looks at, and making it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attacks.base import Threat, is_stochastic
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.certify import certify, chosen_images, is_stored
from robustbench_sparse.certificate.checks import own_checks
from robustbench_sparse.certificate.checks.seeds_and_data import facts_of
from robustbench_sparse.certificate.subject import Context, Subject
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.config.schema import Level
from robustbench_sparse.engine.autotune import Speed, prices
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.foundation.fences import remove_tree
from robustbench_sparse.foundation.files import plain, read_json
from robustbench_sparse.judging.judge import Judge
from robustbench_sparse.judging.relatives import Relatives
from robustbench_sparse.runs import names
from robustbench_sparse.runs.provenance import code_of, function_source
from robustbench_sparse.runs.rebuild import has_recipe


@dataclass(frozen=True)
class Examination:
    """The certificate of a network that a judge has judged, or is about to.

    Args:
        judge: holds the network, the data, the run's folder and what the outcomes depend on.
        attacks: the benchmark's, bound to their sources.
        level: ``off``, ``quick`` or ``full``.
        threat: the benchmark's.
        kin: other networks that some checks need.
        seconds: the budget of time of the checks; None for all of them.
        speed: how the checks may climb where the row's own attacks were too little work to choose; None: as they do.
        checks: further ones, of the user's own, by reference.
    """

    judge: Judge
    attacks: list[AttackPlan]
    level: Level
    threat: Threat
    kin: Relatives
    seconds: int | None = None
    speed: Speed | None = None
    checks: Sequence[str] = ()

    def key(self) -> dict[str, Any]:
        """Everything that determines the findings but the budget."""
        outcomes = self.judge.key(None)
        return {
            **{k: outcomes[k] for k in ("identity", "seed", "draws", "test_images")},
            "precision": (self.speed or self.judge.settings).precision,
            "code": {a.label: code_of([a.attack]) for a in self.attacks},
            "attacks": {a.label: plain(a.record()) for a in self.attacks},
            "sources": {a.label: a.source for a in self.attacks if a.source},
            "threat": {"norm": self.threat.norm, "eps": self.threat.eps},
            "kin": {**self.kin.identities(), "undefended": self.kin.undefended},
            **({"checks": self._code()} if self.checks else {}),
        }

    def _code(self) -> dict[str, str]:
        """What names the user's own checks: by id the source of each."""
        own = own_checks(self.checks)
        return {name: f"{check.run.__module__} {function_source(check.run)}" for name, check in own.items()}

    def is_done(self) -> bool:
        """Whether there is nothing to make."""
        return self.level == "off" or is_stored(self.judge.run, self.key(), self.level, self.seconds)

    def tidy(self) -> None:
        """Remove what a process left that was killed once the certificate was stored."""
        remove_tree(self.judge.run / names.EXAMINING)

    def make(self) -> None:
        """Run the checks that are not stored yet; outcomes are there."""
        if self.is_done():
            return
        judge, folder = self.judge, self.judge.run
        budget = BUDGETS[self.level]
        images = budget.random_images if is_stochastic(judge.model) else budget.images
        positions = chosen_images(judge.data, images)
        decided = judge.clean()["correct"].notna().tolist()  # nothing can be said of the others
        positions = positions[torch.tensor(decided)[positions]]
        x, y = judge.data.gather("test", positions)
        recipe = has_recipe(folder)
        weights, claims = folder / names.WEIGHTS, folder / names.SPARSITY
        context = Context(
            folder=folder,
            weights=weights if recipe and weights.is_file() else None,
            plans=self.attacks,
            outcomes={"clean": judge.clean(), **{a.label: judge.attack(a) for a in self.attacks}},
            twin=None if self.kin.twin is None else (self.kin.twin.name, self.kin.twin.network),
            parent=None if self.kin.parent is None else (self.kin.parent.name, self.kin.parent.network),
            undefended=self.kin.undefended,
            claims=read_json(claims) if claims.is_file() else None,
            seeds=self.kin.seeds,
            images=judge.data,
            data=facts_of(judge.data) if recipe else None,  # who knows what another's network was trained on
        )
        subject = Subject(
            judge.model,
            x,
            y,
            judge.data.test_indices[positions],
            self.threat,
            classes=judge.data.classes,
            seed=judge.settings.seed,
            budget=budget,
            context=context,
            stand_in=self._stand_in(x),
            fresh=judge.fresh,
            batch_size=judge.settings.batch_size,
        )
        certify(
            subject,
            folder,
            self.key(),
            self.level,
            judge.show,
            judge.title,
            self.seconds,
            lambda: prices(judge.model, subject.network, x),
            own_checks(self.checks),
        )

    def _stand_in(self, x: Tensor) -> FastNetwork | None:
        """What the checks' attacks climb on: what the row's own did, or a copy made for them."""
        if self.judge.stand_in is not None or self.speed is None or len(x) == 0:
            return self.judge.stand_in
        return self.speed.stand_in(self.judge.model, x[: self.judge.settings.batch_size])[0]
