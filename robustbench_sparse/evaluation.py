"""The same judge for a network that was not trained here, or not in this benchmark."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustbench_sparse import leaderboard
from robustbench_sparse.benchmark import (
    judge_network,
    load_dataset,
    manifest_of,
    prepare_data,
)
from robustbench_sparse.config import resolve
from robustbench_sparse.data import DATASETS
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.devices import choose_device
from robustbench_sparse.environment import describe
from robustbench_sparse.errors import UserError, one_line
from robustbench_sparse.files import locked, read_json, write_json
from robustbench_sparse.plan import Plan
from robustbench_sparse.progress import Show, Silent
from robustbench_sparse.sparsity import count_sparsity
from robustbench_sparse.suites import SUITES
from robustbench_sparse.targets import resolve_target


def evaluate(
    target: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    dataset: str | Mapping[str, Any] | None = None,
    attacks: Sequence[str] | Mapping[str, Any] | None = None,
    suite: str | None = "standard",
    norm: str | None = None,
    eps: float | None = None,
    seed: int = 0,
    limit: int | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    changes: Sequence[str] = (),
    show: Show | None = None,
) -> pd.DataFrame:
    """Judge one network: a run's folder, a shrunk network's file, a factory ``package.module:function``, or an
    ``nn.Module``.

    Args:
        target: what to judge. A factory is called without arguments and returns the network; networks take
            images in [0, 1], (B, C, H, W), and return logits (B, K).
        weights: safetensors file (or a torch state_dict, read without running code) for a factory's network.
        dataset: name or config entry of the data set; a run's folder and a shrunk network's file know theirs.
        attacks: names, or label -> config entry; in place of a suite.
        suite: a named list of attacks, see ``suites.SUITES``.
        norm, eps: the threat; they know that, too; else l_inf and 8/255.
        seed: seed of the evaluation.
        limit: judge only so many test images.
        device, data_root, show: as for ``run_benchmark``.
        out: keep the outcomes below this folder, so that a killed evaluation goes on.
        changes: ``key.path=value`` assignments, for example ``data.path=images.zip``.

    Returns:
        A leaderboard of one row.

    Raises:
        UserError: bad arguments, data or weights.
    """
    show = show or Silent()
    chosen = choose_device(device)
    found = resolve_target(target, weights, data_root)
    model, name, identity = found.model, found.name, found.identity
    dataset, norm = dataset or found.dataset, norm or found.norm
    eps = found.eps if eps is None else eps
    if dataset is None:
        raise UserError(f"--dataset: expected one of {', '.join(sorted(DATASETS))}")
    if attacks is None:
        if suite not in SUITES:
            raise UserError(f"--suite: expected one of {', '.join(SUITES)}, got {suite!r}")
        attacks = SUITES[suite]
    elif not isinstance(attacks, Mapping):
        attacks = {a.replace(":", "_").replace(".", "_"): {"name": a} for a in attacks}
    threat: dict[str, Any] = {"norm": norm or "linf"}
    threat |= {} if eps is None else {"eps": float(eps)}
    raw: dict[str, Any] = {
        "name": "evaluation",
        "data": {"name": dataset} if isinstance(dataset, str) else dict(dataset),
        "threat": threat,
        "attacks": {k: dict(v) if isinstance(v, Mapping) else v for k, v in attacks.items()},
        "evaluation": {"limit": limit},
        # No training here; the schema wants a row, and the judge does not read it.
        "train": {"epochs": 1, "selection": "last"},
        "runs": {"network": {"model": {"name": "mlp"}}},
    }
    plan = resolve(raw, name="evaluate", changes=changes)
    images = load_dataset(plan, data_root)
    data = prepare_data(plan, images, chosen)
    _check_fit(model, data)
    model = model.eval().to(chosen)
    if identity == "module":
        identity = _fingerprint(model)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out) if out is not None else Path(scratch)
        run_id = f"{_file_name(name)}-{identity[:8]}"
        with locked(folder):
            path = folder / "runs" / run_id
            _describe_foreign(folder, path, run_id, name, plan, images, seed, chosen)
            write_json(path / "sparsity.json", count_sparsity(model, data.channels, data.size))
            judge_network(model, plan, data, path, seed, f"{identity}/{images.fingerprint}", show, name)
            return leaderboard.write(folder)


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_fit(model: nn.Module, data: PreparedData) -> None:
    """One forward pass, so that a network for other images is found before any attack."""
    x = torch.zeros(1, data.channels, data.size, data.size)
    try:
        with torch.no_grad():
            out = model.cpu().eval()(x)
    except Exception as e:
        reason = f"{type(e).__name__}: {one_line(e)[:160]}"
        raise UserError(f"the network does not take images of shape {tuple(x.shape[1:])}: {reason}") from None
    if out.shape != (1, data.classes):
        raise UserError(f"the network gives {tuple(out.shape)} for one image, expected (1, {data.classes})")


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _merged(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Earlier evaluations by the same attacks stay rows of the same table."""
    path = folder / "benchmark.json"
    if not path.exists():
        return manifest
    old = read_json(path)
    same = all(old.get(k) == manifest[k] for k in ("name", "dataset", "settings", "threat"))
    new = {r["run_id"] for r in manifest["runs"]}
    kept = [r for r in old.get("runs", []) if r["run_id"] not in new] if same else []
    return {**manifest, "runs": kept + manifest["runs"]}


def _describe_foreign(
    folder: Path,
    path: Path,
    run_id: str,
    name: str,
    plan: Plan,
    images: Dataset,
    seed: int,
    device: torch.device,
) -> None:
    """Write the files that make an evaluation look like a run, for the leaderboard."""
    threat = plan.config.threat.model_dump()
    manifest = manifest_of(plan, images, [{"run_id": run_id, "run": name, "seed": seed}])
    write_json(folder / "benchmark.json", _merged(folder, manifest))
    write_json(
        path / "run.json",
        {
            "run_id": run_id,
            "benchmark": "evaluation",
            "run": name,
            "seed": seed,
            "dataset": images.label,
            "model": name,
            "defenses": "",
            "threat": threat,
            "record": {},
        },
    )
    write_json(path / "environment.json", describe(device))
    write_json(path / "training.json", {"status": "complete", "reason": "", "train_seconds": 0.0})
