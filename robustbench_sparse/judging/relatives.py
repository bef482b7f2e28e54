"""The other networks of a benchmark that a row is judged with: its undefended twin, its dense parent, any source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from attacks.transfer import NOISE_OFF, Transfer
from robustbench_sparse.config.plan import AttackPlan, Plan, RunPlan
from robustbench_sparse.foundation.errors import UserError


@dataclass(frozen=True)
class Relative:
    """Another network: the name of its row, what reads it (in eval mode), and what names its weights."""

    name: str
    read: Callable[[], nn.Module]
    identity: str

    @cached_property
    def network(self) -> nn.Module:
        """The network; read when it is first asked for, as a row whose outcomes are stored needs none."""
        return self.read()


# Finds the network of a row by its label, or of a run by its folder.
Find = Callable[[str], Relative]


@dataclass(frozen=True, kw_only=True)
class Relatives:
    """What is known of a row's relatives.

    Attributes:
        twin: the undefended network of the same architecture; None where the benchmark has none.
        undefended: the row is such a network itself.
        parent: the network that was trained alike but for what makes this row's sparse.
        find: finds any other.
        seeds: how many seeds the benchmark runs the row with.
    """

    twin: Relative | None = None
    undefended: bool = False
    parent: Relative | None = None
    find: Find | None = None
    seeds: int = 1

    def identities(self) -> dict[str, str | None]:
        """What names the weights of twin and parent."""
        pairs = (("twin", self.twin), ("parent", self.parent))
        return {name: None if r is None else r.identity for name, r in pairs}

    def bound(self, plan: AttackPlan) -> AttackPlan:
        """The plan with its transfer attack bound to its source; any other plan as it is."""
        attack = plan.attack
        if not isinstance(attack, Transfer) or attack.source == NOISE_OFF:
            return plan
        if self.find is None:
            raise UserError(f"attacks.{plan.label}.source: expected {NOISE_OFF} or a run's folder here")
        source = self.find(attack.source)
        return replace(plan, attack=attack.on(source.network), source=source.identity)


def twin_of(plan: Plan, run: RunPlan) -> str | None:
    """Label of the undefended row of the same architecture; None where there is none, or the row is undefended."""
    return _label(plan, run, []) if run.defenses or run.sparsifies else None


def parent_of(plan: Plan, run: RunPlan) -> str | None:
    """Label of the row with the same architecture and all defenses but those that make sparse; None without."""
    dense = [d.record() for d in run.defenses if not d.build().sparsifies]
    return _label(plan, run, dense) if run.sparsifies else None


def _label(plan: Plan, run: RunPlan, defenses: list[dict[str, object]]) -> str | None:
    """Label of the row of the same architecture with exactly these defenses, trained by a dense optimizer."""
    same = [
        other.label
        for other in plan.runs
        if other.label != run.label
        and other.record()["model"] == run.record()["model"]
        and [d.record() for d in other.defenses] == defenses
        and not any(stage.optimizer.sparsifies for stage in other.stages)
    ]
    return same[0] if same else None
