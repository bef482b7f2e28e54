"""A network as a user gives it: where it is from, what stands around it, what may attack it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from attacks import ATTACKS
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.suites import SUITES, attacks_of
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.gate.running import as_flags
from robustbench_sparse.runs.targets import Target, resolve_target
from robustbench_sparse.sources import adapting
from robustbench_sparse.sources.preparation import UNKNOWN, Preparation

BLACK_BOX = "black-box"  # how a row is judged whose network only answers
IMAGENET, IMAGENET_CLASSES = "ImageNet", 1000


@dataclass(frozen=True, kw_only=True)
class GivenNetwork:
    """A network and what a user says of it.

    Attributes:
        found: as its source gave it.
        model: with the normalisation and the classes that are asked for; eval mode, on the CPU.
        preparation: what stands in front of it now, and what images it was made for.
        indices: of its logits, one for each of the data's classes, where they were chosen.
        changed: what the user asked for, for the table.
    """

    found: Target
    model: nn.Module
    preparation: Preparation
    indices: tuple[int, ...] = ()
    changed: tuple[str, ...] = ()

    def choosing(self, classes: str | Sequence[int], names: Sequence[str]) -> GivenNetwork:
        """The same with the logits of a data set's classes, see ``sources.classes``."""
        model, indices = adapting.with_classes(self.model, classes, names, self.found.labels)
        changed = (*self.changed, f"classes={len(indices)}")
        return replace(self, model=model, indices=tuple(indices), changed=changed)

    def said(self) -> list[str]:
        """Where it is from and what was done to it, a sentence each; nothing where there is nothing to say."""
        preparation = self.preparation
        of_images = [preparation.said()] if preparation != UNKNOWN else []
        chosen = (
            [f"{len(self.indices)} of its logits are looked at: it cannot answer with others"]
            if self.indices
            else []
        )
        return [*of_images, *self.found.notes, *chosen]

    def claim_on(self, images: Dataset) -> float | None:
        """The clean accuracy that its maker states of such images, in percent; None where nothing is stated."""
        of, whole = self.found.claim_of, len(images.classes) == IMAGENET_CLASSES
        return self.found.claim if of == images.label or (of == IMAGENET and whole) else None

    def facts(self, flags: Sequence[str]) -> dict[str, Any]:
        """What its row records beside its identity.

        Args:
            flags: the gate's checks that warn.
        """
        settings = ", ".join(self.changed)
        about: dict[str, Any] = {
            "model": f"{self.found.name}({settings})" if settings else self.found.name,
            "source": {
                "prepared": self.preparation.record(),
                "classes": list(self.indices),
                "notes": self.said(),
            },
        }
        if flags:
            about["gate"] = as_flags(flags)
        return {**about, "access": BLACK_BOX} if self.found.black_box else about

    def check_access(self, plan: Plan) -> None:
        """UserError for attacks and checks that need a gradient, of a network that has none."""
        if not self.found.black_box:
            return
        known = [name for name, attack in ATTACKS.items() if attack.black_box]
        adapting.refuse_gradients([a.label for a in plan.attacks if not a.attack.black_box], known)
        if plan.config.evaluation.certificate != "off":
            raise UserError(
                "--certificate: expected off for a network that only answers: the checks need gradients"
            )

    def judged_by(self, plan: Plan) -> Plan:
        """The plan, without quicker copies of a network whose layers are not torch's."""
        if not self.found.black_box:
            return plan
        plainly = {"precision": "fp32", "compile": "off", "engine": "dense"}
        evaluation = plan.config.evaluation.model_copy(update=plainly)
        return replace(plan, config=plan.config.model_copy(update={"evaluation": evaluation}))


def take(
    target: str | Path | nn.Module,
    weights: str | Path | None,
    data_root: str | Path | None,
    *,
    mean: str | Sequence[float] | None = None,
    std: str | Sequence[float] | None = None,
    trust_file: bool = False,
) -> GivenNetwork:
    """Find a network and put a normalisation in front of it where one is asked for.

    Raises:
        UserError: see ``runs.targets.resolve_target`` and ``sources.preparation.normalisation_of``.
    """
    found = resolve_target(target, weights, data_root, trust_file=trust_file, answers_only=True)
    first, second = _text(mean), _text(std)
    model, preparation = adapting.with_normalisation(found.model, found.preparation, first, second)
    changed = tuple(
        f"{name}={text.replace(',', ' ')}" for name, text in (("mean", first), ("std", second)) if text
    )
    return GivenNetwork(found=found, model=model, preparation=preparation, changed=changed)


def attacks_by_name(suite: str | None, black_box: bool) -> Mapping[str, Mapping[str, Any]]:
    """The attacks of a suite, ``standard`` where none is named; of a network that only answers those without gradients.

    Raises:
        UserError: an unknown suite, or one whose attacks all need a gradient that there is not.
    """
    name = suite or "standard"
    if name not in SUITES:
        raise UserError(f"--suite: expected one of {', '.join(SUITES)}, got {name!r}")
    if not black_box:
        return SUITES[name]
    free = [label for label, attack in attacks_of(name).items() if attack.black_box]
    if not free:
        raise UserError(f"--suite {name}: all of its attacks need a gradient, and this network only answers")
    return {label: SUITES[name][label] for label in free}


def _text(values: str | Sequence[float] | None) -> str | None:
    return values if values is None or isinstance(values, str) else ",".join(map(str, values))
