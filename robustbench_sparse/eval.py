"""RobustBench's call: ``benchmark(model, ...)`` -> clean and robust accuracy, with its arguments' names.

Where ``from robustbench.eval import benchmark`` stood, ``from robustbench_sparse.eval import benchmark`` does the same:
AutoAttack on the test images. What differs is what lies behind it: verdicts are this package's, image by image, and of
fewer images than there are the fixed random choice is judged that all its benchmarks judge, not the first ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks.base import Norm
from robustbench_sparse.data import DATASETS
from robustbench_sparse.data.arrays import Given
from robustbench_sparse.evaluation import evaluate
from robustbench_sparse.exchange.entry import KEYS, percent, shown_eps
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.files import read_json, write_json
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.zoo import THREATS

# What theirs has and ours does elsewhere -> where.
ELSEWHERE = {
    "preprocessing": "give the data set as {name: image_folder, path: ..., size: 224, crop: 0.875}",
    "corruptions_data_dir": "the shifts of a config are images without an adversary: `list shifts`",
    "log_path": "give `show`, a foundation.progress.Progress",
}


def benchmark(
    model: nn.Module | str,
    n_examples: int = 10_000,
    dataset: str | Mapping[str, Any] = "cifar10",
    threat_model: str = "Linf",
    to_disk: bool = False,
    model_name: str | None = None,
    data_dir: str | Path | None = None,
    corruptions_data_dir: str | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    eps: float | None = None,
    log_path: str | None = None,
    preprocessing: object = None,
    aa_state_path: str | Path | None = None,
    *,
    data: Given | None = None,
    attacks: Sequence[str] | Mapping[str, Any] | None = None,
    certificate: str | None = None,
    seed: int = 0,
    show: Progress | None = None,
) -> tuple[float, float]:
    """Clean and robust accuracy of a network, as shares in [0, 1].

    Args:
        model: the network, images in [0, 1], (B, C, H, W), to logits (B, K); or anything else that ``evaluate`` takes.
        n_examples: test images to judge at most.
        dataset: name or config entry of the data set.
        threat_model: ``Linf`` or ``L2``.
        to_disk: write ``model_info/<dataset>/<threat>/<model_name>.json``, an entry of RobustBench's with these two
            numbers in it; what only people know is null. One that is there keeps its other keys.
        model_name: names that file.
        data_dir: folder of the data sets; None means $RBS_DATA, or ``data``.
        device: None means ``auto``.
        batch_size: images attacked at once; None is chosen by measurement.
        eps: radius in units of the pixel range.
        aa_state_path: keep all outcomes in this folder, so that a killed evaluation goes on.
        data: images and labels in place of a data set, see ``evaluate``.
        attacks: in place of AutoAttack, see ``evaluate``; the robust accuracy is then the worst case of them all.
        certificate: ``off``, ``quick`` or ``full``: what its checks break counts in the robust accuracy.
        seed, show: as for ``evaluate``.
        corruptions_data_dir, log_path, preprocessing: RobustBench's; refused, with what does the same here.

    Raises:
        UserError: an argument that this package has no use for, no ``eps``, or what ``evaluate`` raises.
    """
    given = {
        "preprocessing": preprocessing,
        "corruptions_data_dir": corruptions_data_dir,
        "log_path": log_path,
    }
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name}: not taken here: {ELSEWHERE[name]}")
    norm = _norm(threat_model)
    if eps is None:
        raise UserError(f"eps: expected the radius of {threat_model}, as in eps=8/255")
    if to_disk and not model_name:
        raise UserError("model_name: expected a name with to_disk")
    if data is None and isinstance(dataset, str) and dataset not in DATASETS:
        raise UserError(
            f"dataset: expected one of {', '.join(DATASETS)}, got {dataset!r}{near(dataset, DATASETS)}; of other "
            "images give `data=(images, labels)`, or the entry of an image_folder"
        )
    table = evaluate(
        model,
        dataset=None if data is not None else dataset,
        data=data,
        attacks={"autoattack": {"name": "autoattack"}} if attacks is None else attacks,
        norm=norm,
        eps=float(eps),
        seed=seed,
        limit=n_examples,
        certificate=certificate,
        device="auto" if device is None else str(device),
        data_root=data_dir,
        out=aa_state_path,
        changes=[] if batch_size is None else [f"evaluation.batch_size={batch_size}"],
        show=show,
    )
    row = table.iloc[-1]
    if not str(row["status"]).startswith("ok"):
        raise UserError(f"no number: {row['status']}")
    clean, robust = float(row["clean"]) / 100, float(row["worst"]) / 100
    if to_disk:
        called = (
            "arrays" if data is not None else dataset if isinstance(dataset, str) else str(dataset["name"])
        )
        _to_disk(
            Path("model_info") / called / threat_model, str(model_name), called, eps, clean, robust, attacks
        )
    return clean, robust


def _norm(threat_model: str) -> Norm:
    if threat_model.startswith("corruptions"):
        raise UserError(
            f"threat_model: expected Linf or L2, got {threat_model!r}: {ELSEWHERE['corruptions_data_dir']}"
        )
    if threat_model not in THREATS:
        raise UserError(
            f"threat_model: expected Linf or L2, got {threat_model!r}{near(threat_model, THREATS)}"
        )
    return THREATS[threat_model]


def _to_disk(
    folder: Path, name: str, dataset: str, eps: float, clean: float, robust: float, attacks: object
) -> None:
    """Write the two numbers as RobustBench does; a rate that is not AutoAttack's alone is ``external``."""
    if os.sep in name or name.startswith("."):
        raise UserError(f"model_name: expected the name of a file, got {name!r}")
    path = folder / f"{name}.json"
    known = dict.fromkeys(KEYS)
    if path.is_file():
        found = read_json(path)
        known = {**known, **found} if isinstance(found, dict) else known
    rate = "autoattack_acc" if attacks is None else "external"
    now = {
        "dataset": dataset,
        "eps": shown_eps(eps),
        "clean_acc": percent(100 * clean),
        rate: percent(100 * robust),
    }
    write_json(path, {**known, **now})
