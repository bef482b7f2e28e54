"""The same judge for a network that was not trained here, or not in this benchmark."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.plugins import trust
from robustbench_sparse.config.schema import LEVELS, MOST_NAME, NetworkConfig
from robustbench_sparse.config.suites import SUITES
from robustbench_sparse.data import DATASETS
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.devices import choose_device
from robustbench_sparse.foundation.errors import UserError, contained, one_line
from robustbench_sparse.foundation.files import write_json
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.foundation.locks import locked
from robustbench_sparse.foundation.progress import Progress, Silent
from robustbench_sparse.judging.fresh import Fresh
from robustbench_sparse.reporting import tables
from robustbench_sparse.runs import names, zoo
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import manifest_of, read_manifest
from robustbench_sparse.runs.provenance import network_identity
from robustbench_sparse.runs.targets import resolve_target
from robustbench_sparse.runs.variants import difference
from robustbench_sparse.verdict import judge_network

TOLERANCE = 2.0  # points below the expected clean accuracy that still pass
NEAR_CHANCE = 0.1  # of the way from guessing to perfect
FEWEST = 20  # images on which a rate near chance says something


def evaluate(
    target: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    dataset: str | Mapping[str, Any] | None = None,
    attacks: Sequence[str] | Mapping[str, Any] | None = None,
    suite: str | None = None,
    norm: str | None = None,
    eps: float | None = None,
    seed: int = 0,
    limit: int | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    changes: Sequence[str] = (),
    expect_clean: float | None = None,
    trust_plugins: Sequence[str] = (),
    show: Progress | None = None,
) -> pd.DataFrame:
    """Judge one network: a run's folder, ``zoo:NAME``, a shrunk network's file, a factory, or an ``nn.Module``.

    Args:
        target: what to judge. A factory, ``package.module:function``, is called without arguments and returns the
            network; networks take images in [0, 1], (B, C, H, W), and return logits (B, K).
        weights: safetensors file (or a torch state_dict, read without running code) for a factory's network.
        dataset: name or config entry of the data set; a run's folder and a shrunk network's file know theirs.
        attacks: names, or label -> config entry; in place of a suite.
        suite: a named list of attacks, see ``suites.SUITES``. Without attacks and suite a network of the zoo is judged
            by those of its record, on as many images and with as many draws, and any other by ``standard``.
        norm, eps: the threat; they know that, too; else l_inf and 8/255.
        seed: seed of the evaluation.
        limit: judge only so many test images.
        device, data_root, show: as for ``run_benchmark``.
        out: keep the outcomes below this folder, so that a killed evaluation goes on. What is stored there is served
            only for the same network: its tensors, the source of its classes, and its logits on fixed images.
        changes: ``key.path=value`` assignments, for example ``data.path=images.zip``.
        expect_clean: the clean accuracy that the network should have, in percent; see ``check_clean``.
        trust_plugins: modules that a stored file may name code of; a file alone never imports anything.

    Returns:
        The leaderboard of ``out``, this network's row last; of one row without ``out``. Its ``attrs`` have the
        ``images`` that were judged, as positions in the data set.

    Raises:
        UserError: bad arguments, data or weights; a clean accuracy that shows that something is wrong; or a folder
            ``out`` with evaluations by other attacks or on other images.
    """
    show = show or Silent()
    chosen = choose_device(device)
    trust(trust_plugins)
    found = resolve_target(target, weights, data_root)
    model, name = found.model, found.name
    dataset, norm = dataset or found.dataset, norm or found.norm
    eps = found.eps if eps is None else eps
    if dataset is None:
        raise UserError(f"--dataset: expected one of {', '.join(sorted(DATASETS))}")
    settings: dict[str, Any] = {"limit": limit}
    if attacks is None and suite is None and isinstance(target, str) and target.startswith(zoo.PREFIX):
        recorded = zoo.find(target)
        attacks = recorded.attacks
        settings = {**recorded.evaluation, **({} if limit is None else settings)}
    if attacks is None:
        suite = suite or "standard"
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
        "evaluation": settings,
    }
    plan = resolve(raw, name="evaluate", changes=changes, schema=NetworkConfig)
    images = load_dataset(plan.dataset, data_root)
    data = plan.prepare(images, chosen)
    examined = plan.config.evaluation.certificate != "off"
    fresh = Fresh(model if examined else None)  # before anything asks it
    _check_fit(model, data)
    identity = network_identity(model.cpu().eval(), data.channels, data.size, [found.factory])
    model = model.eval().to(chosen)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out) if out is not None else Path(scratch)
        with locked(folder):
            place = _foreign(folder, name, identity, plan, images, seed)
            place.prepare(chosen)
            place.store_foreign()
            with contained(f"{name}: counting its zeros"):
                place.count(model, data.channels, data.size)
            gate = partial(check_clean, classes=data.classes, expected=expect_clean)
            known = f"{identity}/{images.fingerprint}"
            judge_network(
                model, place, plan, data, show, identity=known, title=place.label, gate=gate, fresh=fresh
            )
            table = tables.write(folder)
            table.attrs["images"] = data.test_indices.tolist()
            return table


def _check_fit(model: nn.Module, data: PreparedData) -> None:
    """One forward pass, so that a network for other images is found before any attack."""
    x = torch.zeros(1, data.channels, data.size, data.size)
    try:
        with torch.no_grad():
            out: object = model.cpu().eval()(x.clone())
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        reason = f"{type(e).__name__}: {one_line(e)[:160]}"
        raise UserError(f"the network does not take images of shape {tuple(x.shape[1:])}: {reason}") from None
    if not isinstance(out, torch.Tensor):
        inside = (
            "its .logits are one: return these"
            if isinstance(getattr(out, "logits", None), torch.Tensor)
            else (
                "return its first part, if that is the logits"
                if isinstance(out, tuple | list)
                else "return logits"
            )
        )
        raise UserError(
            f"the network returns a {type(out).__name__}, expected a tensor of logits (B, {data.classes}); {inside}"
        )
    if not out.is_floating_point() or out.device.type == "meta":
        raise UserError(f"the network returns {out.dtype} on {out.device}, expected floating-point logits")
    if out.shape != (1, data.classes):
        raise UserError(f"the network gives {tuple(out.shape)} for one image, expected (1, {data.classes})")


def check_clean(clean: pd.DataFrame, *, classes: int, expected: float | None) -> None:
    """UserError where a network classifies clean images so badly that something must be wrong with how it is fed.

    Args:
        clean: the judge's verdicts on clean images.
        classes: number of classes.
        expected: the accuracy that its maker claims, in percent; what is not ``TOLERANCE`` points below it passes.
            Without one, less than a tenth of the way from guessing to perfect does not.
    """
    right = clean["correct"].fillna(0.0)  # an image without a verdict is none that is classified right
    rate = 100 * float(right.mean())
    chance = 100 / classes
    look = (
        "look at: the weights (were they loaded? --weights), the normalisation that the network was trained with "
        "(images here are in [0, 1]: put it into the network), the order of classes and of colour channels"
    )
    if expected is not None:
        _, high = wilson(math.fsum(right), len(clean))
        if rate < expected - TOLERANCE and 100 * high < expected:
            raise UserError(f"clean accuracy {rate:.1f} %, where --expect-clean says {expected:g} %; {look}")
    elif len(clean) >= FEWEST and rate < chance + NEAR_CHANCE * (100 - chance):
        raise UserError(
            f"clean accuracy {rate:.1f} %, and guessing has {chance:.1f} %: nothing was attacked; {look}. If it "
            f"is meant to be so, say --expect-clean {math.floor(rate)}"
        )


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:MOST_NAME]


def _foreign(folder: Path, name: str, identity: str, plan: Plan, images: Dataset, seed: int) -> RunFolder:
    """The run's folder of a network that was not trained here; the manifest gets a row for it.

    Rows are networks: the same name with another network behind it is another row.

    Raises:
        UserError: the folder holds evaluations by other attacks, or on other data or images.
    """
    path = folder / names.BENCHMARK
    old = read_manifest(folder) if path.exists() else None
    run_id = f"{_file_name(name)}-s{seed}-{identity[:12]}"
    kept = [r for r in old["runs"] if r["run_id"] != run_id] if old else []
    taken = {(r["run"], r["seed"]) for r in kept}
    label = name if (name, seed) not in taken else f"{name} #{identity[:8]}"
    manifest = manifest_of(plan, images, [*kept, {"run_id": run_id, "run": label, "seed": seed}])
    if old is not None:
        # Older folders name a row there, which nothing was trained for.
        before, now = ({k: v for k, v in m["table"].items() if k != "runs"} for m in (old, manifest))
        changed = difference(before, now) or difference(now, before)
        if changed or old["dataset"] != manifest["dataset"]:
            raise UserError(
                f"{folder}: holds evaluations of another kind ({changed or old['dataset']}), which would not stand in "
                "one table with this one; choose another --out"
            )
        if LEVELS.index(old["certificate"]) > LEVELS.index(manifest["certificate"]):
            manifest["certificate"] = old["certificate"]
            manifest["certificate_seconds"] = old["certificate_seconds"]
    write_json(path, manifest)
    facts = {"run": label, "seed": seed, "model": name, "identity": identity}
    return RunFolder.foreign(folder / names.RUNS / run_id, plan, images, facts)
