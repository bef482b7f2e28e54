"""Checks H: is the comparison fair, on images new to the network and over enough seeds?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_sparse.certificate.checks.attack_records import LISTED
from robustbench_sparse.certificate.finding import Check, Finding, Value, ruled, skipped
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.runs import names
from robustbench_sparse.runs.rebuild import has_recipe

LEAKED = 0.01  # share of the test images
SEEDS = 3
CARLINI = "Carlini et al. 2019 (arXiv 1902.06705)"


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Which images were trained on, selected on and judged.

    Attributes:
        train, val: positions in the data set's training part.
        train_hashes, val_hashes: of these images, see ``PreparedData.image_hashes``.
        test: positions of the judged images in the test part.
        test_hashes: of these images.
    """

    train: np.ndarray[Any, Any]
    val: np.ndarray[Any, Any]
    train_hashes: np.ndarray[Any, Any]
    val_hashes: np.ndarray[Any, Any]
    test: np.ndarray[Any, Any]
    test_hashes: np.ndarray[Any, Any]


def facts_of(data: PreparedData) -> DataFacts:
    """The facts of a data set as a run used it."""
    return DataFacts(
        train=data.indices["train"].numpy(),
        val=data.indices["val"].numpy(),
        train_hashes=data.image_hashes("train"),
        val_hashes=data.image_hashes("val"),
        test=data.indices["test"].numpy(),
        test_hashes=data.image_hashes("test"),
    )


def judged_images_are_new(s: Subject) -> Finding:
    """Nothing learned or chosen on test images."""
    facts = s.context.data
    if not isinstance(facts, DataFacts):
        return skipped("what the network was trained on is not known")
    shared = np.intersect1d(facts.train, facts.val)
    seen = np.concatenate([facts.train_hashes, facts.val_hashes])
    leaked = facts.test[np.isin(facts.test_hashes, seen)]
    low, _ = wilson(len(leaked), len(facts.test))
    blind = _chosen_blindly(s.context.folder)
    measured: dict[str, Value] = {
        "trained and validated on": [int(i) for i in shared[:LISTED]],
        "test images seen in training": len(leaked),
        "seen_share": len(leaked) / max(len(facts.test), 1),
        "seen": [int(i) for i in leaked[:LISTED]],
        "chosen without a validation part": blind,
    }
    done = (
        f"positions of {len(facts.train)} training and {len(facts.val)} validation images, and bytes of these "
        f"against {len(facts.test)} test images"
    )
    return ruled(len(shared) == 0 and not blind and not low > LEAKED, done, measured)


JUDGED_IMAGES_ARE_NEW = Check(
    id="H1",
    title="the test images are new to the network",
    source=CARLINI,
    rule="training and validation positions are disjoint; no epoch is chosen without a validation part; test "
    f"images that are byte for byte in the training part: <= {100 * LEAKED:g} % (lower end of the 95 % interval). "
    "A few such copies stand in some public data sets, are no fault of the run, and move no rate by more.",
    meaning="The network was trained or chosen on images it is judged on.",
    advice="Set validation > 0, and remove the listed test images from the training part.",
    run=judged_images_are_new,
    refutes=True,
)


def _chosen_blindly(folder: Path | None) -> bool:
    """Whether a run's record says that an epoch was chosen by its accuracy, with no images held out for that."""
    if folder is None or not has_recipe(folder):
        return False
    record = read_json(folder / names.RUN)["record"]
    chosen = any(stage.get("selection") != "last" for stage in record.get("stages", []))
    return chosen and not record.get("validation")


def seeds_and_interval(s: Subject) -> Finding:
    """Seeds, and the interval of the images looked at."""
    correct = s.white.correct
    low, high = wilson(min(correct.sum().item(), len(s)), len(s))
    why = "" if s.context.seeds >= SEEDS else f"fewer than {SEEDS} seeds: nothing is known of other trainings"
    measured: dict[str, Value] = {
        "seeds": s.context.seeds,
        "n": len(s),
        "acc": correct.mean().item(),
        "low": low,
        "high": high,
    }
    return Finding(
        status="reported",
        done=f"seeds counted: {s.context.seeds}; Wilson's 95 % interval of the white box on {len(s)} images",
        measured=measured,
        why=why,
    )


SEEDS_AND_INTERVAL = Check(
    id="H2",
    title="how far the number carries",
    source=f"{CARLINI}; Wilson 1927",
    rule=f"reported: number of seeds ({SEEDS} or more make a mean and its spread) and the interval of the images",
    meaning="With one seed and few images, the order of close rows is chance.",
    advice="Train more seeds; raise evaluation.limit.",
    run=seeds_and_interval,
)


CHECKS: tuple[Check, ...] = (
    JUDGED_IMAGES_ARE_NEW,
    SEEDS_AND_INTERVAL,
)
