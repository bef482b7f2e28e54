"""From a config to a leaderboard, and the same judge for a network that was not trained here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustbench_sparse import leaderboard
from robustbench_sparse.config import Plan, RunPlan, load, resolve
from robustbench_sparse.data import DATASETS
from robustbench_sparse.data.base import DataError, Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.environment import describe
from robustbench_sparse.errors import UserError, near, one_line
from robustbench_sparse.files import fill, load_weights, locked, read_json, write_json
from robustbench_sparse.judge import Judge, Protocol, plain
from robustbench_sparse.plugins import import_object
from robustbench_sparse.progress import Show, Silent
from robustbench_sparse.runs import RunFolder, locate, sha256
from robustbench_sparse.sparsity import count_sparsity
from robustbench_sparse.streams import derive
from robustbench_sparse.train import Trainer, build_network, on_device

# The attacks `--suite standard` stands for; every one stays inside the threat.
SUITES: dict[str, dict[str, dict[str, Any]]] = {
    "standard": {
        "fgsm": {"name": "fgsm"},
        "ifgsm20": {"name": "ifgsm", "steps": 20},
        "pgd50x3": {"name": "pgd", "steps": 50, "restarts": 3},
        "pgd50_margin": {"name": "pgd", "steps": 50, "loss": "margin"},
    }
}


def choose_device(name: str) -> torch.device:
    """``auto`` (a GPU where there is one), ``cpu`` or ``cuda``."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device: expected auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        # The same numbers every time matter more here than the last percent of speed.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    return device


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
    show: Show | None = None,
) -> pd.DataFrame:
    """Train what is missing, evaluate what is missing, write and return the leaderboard.

    Args:
        config: a benchmark file, or its content as nested mappings.
        out: results go to ``<out>/<benchmark's name>/``.
        changes: ``key.path=value`` assignments applied to the config.
        only: labels of runs to work on; all if empty.
        seeds: in place of the config's.
        device: ``auto``, ``cpu`` or ``cuda``.
        data_root: folder of the data sets.
        limit: judge only so many test images.
        show: where progress goes.

    Returns:
        The leaderboard, one row per run and seed; also written as ``leaderboard.csv``.

    Raises:
        UserError: bad config, data or folder; nothing has been written then.
        Busy: another process works on the same benchmark folder.
    """
    show = show or Silent()
    extra = list(changes)
    if seeds is not None:
        extra.append(f"seeds={list(seeds)}")
    if limit is not None:
        extra.append(f"evaluation.limit={limit}")
    if isinstance(config, Mapping):
        plan = resolve(dict(config), changes=extra)
    else:
        plan = load(Path(config), extra)
    runs = _chosen(plan, only)
    target = choose_device(device)
    dataset = _dataset(plan, data_root)
    data = _prepared(plan, dataset, target)
    _check_networks(runs, data)

    folder = Path(out) / plan.config.name
    with locked(folder):
        _write_manifest(folder, plan, dataset)
        for seed in plan.config.seeds:
            for run in runs:
                place = locate(folder, plan, run, seed, dataset)
                _train(place, plan, run, data, show)
                _evaluate(place, plan, run, data, dataset, show)
                table = leaderboard.write(folder)
    return table


def _chosen(plan: Plan, only: Sequence[str]) -> list[RunPlan]:
    labels = [r.label for r in plan.runs]
    for label in only:
        if label not in labels:
            raise UserError(
                f"--only {label}: no such run{near(label, labels)}; there are: {', '.join(labels)}"
            )
    return [r for r in plan.runs if not only or r.label in only]


def _dataset(plan: Plan, data_root: str | Path | None) -> Dataset:
    root = Path(data_root) if data_root is not None else None
    if root is not None and not root.is_dir():
        raise UserError(f"--data-root {root}: no such folder")
    try:
        return plan.dataset.load(root, None)
    except DataError as e:
        raise UserError(f"data: {e}") from None


def _prepared(plan: Plan, dataset: Dataset, device: torch.device) -> PreparedData:
    c = plan.config
    try:
        return PreparedData(
            dataset,
            validation=c.validation,
            device=device,
            train_limit=c.train_limit,
            test_limit=c.evaluation.limit,
        )
    except ValueError as e:
        raise UserError(f"data: {one_line(e)}") from None


def _check_networks(runs: Sequence[RunPlan], data: PreparedData) -> None:
    """Build every network without memory, so that a pair that does not fit is found before training."""
    for run in runs:
        try:
            with torch.device("meta"):
                defenses = [d.build() for d in run.defenses]
                model = build_network(run, defenses, data.channels, data.size, data.classes, 0)
        except ValueError as e:
            raise UserError(f"runs.{run.label}: {one_line(e)}") from None
        normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        for stage in run.stages:
            batch = stage.config.batch_size
            if normed and data.count("train") % batch == 1:
                raise UserError(
                    f"runs.{run.label}: batch_size: an epoch of {data.count('train')} images would end with "
                    f"a minibatch of one, which batch-norm cannot train on; expected another than {batch}"
                )


def _write_manifest(folder: Path, plan: Plan, dataset: Dataset) -> None:
    runs = [
        {"run_id": locate(folder, plan, run, seed, dataset).run_id, "run": run.label, "seed": seed}
        for run in plan.runs
        for seed in plan.config.seeds
    ]
    manifest = {
        "name": plan.config.name,
        "source": plan.config.source,
        "dataset": dataset.label,
        "attacks": [a.label for a in plan.attacks],
        "settings": {a.label: plain(a.record()) for a in plan.attacks},
        "threat": plan.config.threat.model_dump(),
        "runs": runs,
        "published": plan.published,
    }
    write_json(folder / "benchmark.json", manifest)


def _train(place: RunFolder, plan: Plan, run: RunPlan, data: PreparedData, show: Show) -> None:
    if place.training() is not None:
        return
    place.prepare(data.device)
    label = f"{run.label} s{place.seed}" if len(plan.config.seeds) > 1 else run.label
    trainer = Trainer(run, data, plan.threat, place.seed, place.checkpoint, show, label)
    place.store(trainer.train())


def _evaluate(
    place: RunFolder, plan: Plan, run: RunPlan, data: PreparedData, dataset: Dataset, show: Show
) -> None:
    training = place.training()
    assert training is not None
    if training["status"] != "complete":
        show.note(f"{run.label}: {training['status']}: {training['reason']}")
        return
    model = place.network(plan, run, dataset)
    if not (place.path / "sparsity.json").exists():
        place.count(model, data.channels, data.size)
    c = plan.config.evaluation
    judge = Judge(
        on_device(model, data.device),
        data,
        place.outcomes,
        Protocol(seed=derive(place.seed, "evaluation"), batch_size=c.batch_size, draws=c.draws),
        f"{training['weights_sha256']}/{dataset.fingerprint}",
        show,
        f"{run.label} s{place.seed}" if len(plan.config.seeds) > 1 else run.label,
    )
    judge.clean()
    for attack in plan.attacks:
        judge.attack(attack)


# A network from elsewhere --------------------------------------------------------------------------------


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
    """Judge one network: a run's folder, a factory ``package.module:function``, or an ``nn.Module``.

    Args:
        target: what to judge. A factory is called without arguments and returns the network; networks take
            images in [0, 1], (B, C, H, W), and return logits (B, K).
        weights: safetensors file (or a torch state_dict, read without running code) for a factory's network.
        dataset: name or config entry of the data set; a run's folder knows its own.
        attacks: names, or label -> config entry; in place of a suite.
        suite: a named list of attacks, see ``SUITES``.
        norm, eps: the threat; a run's folder knows its own, else l_inf and 8/255.
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
    import tempfile

    show = show or Silent()
    chosen = choose_device(device)
    place = _run_folder(target)
    if place is not None:
        if weights is not None:
            raise UserError("--weights: a run's folder has its own weights")
        model, dataset, norm, eps, name, identity = _from_run(place, dataset, norm, eps, data_root)
    elif isinstance(target, nn.Module):
        model, name = target, type(target).__name__
        identity = "module"
    else:
        model, name, identity = _from_factory(str(target), weights)
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
    images = _dataset(plan, data_root)
    data = _prepared(plan, images, chosen)
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
            c = plan.config.evaluation
            protocol = Protocol(seed=derive(seed, "evaluation"), batch_size=c.batch_size, draws=c.draws)
            judge = Judge(
                model, data, path / "outcomes", protocol, f"{identity}/{images.fingerprint}", show, name
            )
            judge.clean()
            for attack in plan.attacks:
                judge.attack(attack)
            return leaderboard.write(folder)


def _run_folder(target: object) -> Path | None:
    if isinstance(target, nn.Module):
        return None
    path = Path(str(target))
    if path.is_dir():
        if not (path / "run.json").exists():
            raise UserError(f"{path}: not a run's folder (no run.json); give results/<benchmark>/runs/<id>")
        return path
    if ":" not in str(target):
        raise UserError(f"{target}: expected a run's folder or package.module:factory")
    return None


def _from_run(
    path: Path, dataset: Any, norm: str | None, eps: float | None, data_root: str | Path | None
) -> tuple[nn.Module, Any, str, float, str, str]:
    facts = read_json(path / "run.json")
    record = facts["record"]
    raw = {
        "name": facts["benchmark"],
        "data": record["data"],
        "validation": record["validation"],
        "train_limit": record["train_limit"],
        "threat": record["threat"],
        "train": {"stages": record["stages"]},
        "runs": {
            facts["run"]: {
                "model": record["model"],
                "defenses": [
                    {k: v for k, v in d.items() if (k, v) != ("stages", None)} for d in record["defenses"]
                ],
            }
        },
    }
    plan = resolve(raw, name=str(path / "run.json"))
    own = _dataset(plan, data_root)
    place = RunFolder(path=path, run_id=facts["run_id"], label=facts["run"], seed=facts["seed"], facts=facts)
    training = place.training()
    if training is None or training["status"] != "complete":
        raise UserError(f"{path}: {'not trained to the end' if training is None else training['reason']}")
    model = place.network(plan, plan.runs[0], own)
    threat = record["threat"]
    return (
        model,
        dataset or record["data"],
        norm or threat["norm"],
        threat["eps"] if eps is None else eps,
        facts["run"],
        training["weights_sha256"],
    )


def _from_factory(reference: str, weights: str | Path | None) -> tuple[nn.Module, str, str]:
    factory = import_object(reference)
    try:
        model = factory()
    except Exception as e:
        raise UserError(f"{reference}: calling it failed: {type(e).__name__}: {one_line(e)}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"{reference}: expected it to return a torch.nn.Module, got {type(model).__name__}")
    if weights is None:
        return model, reference.partition(":")[2], "module"
    path = Path(weights)
    fill(model, load_weights(path), path)
    return model, reference.partition(":")[2], sha256(path)


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
    manifest = {
        "name": "evaluation",
        "source": "",
        "dataset": images.label,
        "attacks": [a.label for a in plan.attacks],
        "settings": {a.label: plain(a.record()) for a in plan.attacks},
        "threat": threat,
        "runs": [{"run_id": run_id, "run": name, "seed": seed}],
        "published": {},
    }
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
