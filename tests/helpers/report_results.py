"""Results for reports: a small benchmark trained on the embedded digits, with a certificate written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import torch

from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.foundation.files import save_weights
from robustbench_sparse.runs import names
from robustbench_sparse.runs.certificate_record import FORMAT
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.seals import seal
from tests.helpers.small import small
from tests.helpers.written_rows import number, record

CONFIG = {
    "name": "digits",
    "model": {"name": "mlp", "hidden": [12]},
    "attacks": {"fgsm": "fgsm", "cw": {"name": "cw", "steps": 3, "search_steps": 1}},
    "train_limit": 400,
    "evaluation": {"limit": 40, "batch_size": 40},
    "train": {"epochs": 8, "batch_size": 40, "optimizer": {"name": "sgd", "lr": 0.5}, "selection": "last"},
    "runs": {
        "natural": {},
        "sparse": {"defenses": [{"name": "magnitude_prune", "sparsity": 80, "rounds": 1, "start": 1}]},
    },
}


def trained(home: Path) -> Path:
    """``digits``: a dense network and a pruned one, trained for eight epochs, judged on 40 images; about a second."""
    run_benchmark(small(**CONFIG), out=home)
    folder = home / "digits"
    manifest = read_manifest(folder)
    certify_by_hand(folder, manifest["runs"][1]["run_id"])
    return folder


def certify_by_hand(folder: Path, run_id: str) -> None:
    """Give one row a certificate that lowers its number: three adversarials that its attacks have missed."""
    manifest, path = read_manifest(folder), folder / names.BENCHMARK
    path.write_text(json.dumps({**json.loads(path.read_text()), "certificate": "quick"}))
    home = RunFolder.at(folder / names.RUNS / run_id)
    index = pd.read_csv(home.path / names.verdicts(names.CLEAN))["index"].tolist()
    identity = json.loads((home.path / names.account(names.CLEAN)).read_text())["key"]["identity"]
    key = {
        "identity": identity,
        "level": "quick",
        "threat": manifest["threat"],
        "attacks": manifest["settings"],
    }
    checks = [
        {
            **record("G1", "failed", bpda_acc=0.4),
            "advice": "Attack it through its own gradient <b>mended</b>.",
        },
        record("M1"),
        number(0.6, 0.2, lowered=True),
    ]
    about = {
        "format": FORMAT,
        "key": key,
        "checks": checks,
        "n": len(index),
        "seconds": 1.0,
        "images": index,
        "version": 2,
    }
    (home.path / names.CERTIFICATE).parent.mkdir(exist_ok=True)
    (home.path / names.CERTIFICATE).write_text(json.dumps(about))
    found = pd.DataFrame(
        {"index": index[:3], "label": 0, "check": "G1", "right": 0.0, "linf": 0.1, "l2": 0.5}
    )
    found.to_csv(home.path / names.FOUND, index=False)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    save_weights(home.path / names.ADVERSARIALS, {"index": torch.tensor(index[:3]), "candidate": images})
    seal(home.path)
