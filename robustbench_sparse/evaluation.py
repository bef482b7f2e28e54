"""The same judge for a network that was not trained here, or not in this benchmark."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustbench_sparse.certificate.checks import own_checks
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.plugins import trust
from robustbench_sparse.config.schema import LEVELS, MOST_NAME, NetworkConfig
from robustbench_sparse.data import DATASETS
from robustbench_sparse.data.arrays import Given, dataset_of, hold, parts_of
from robustbench_sparse.data.base import DataError, Dataset
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.foundation.devices import choose_device
from robustbench_sparse.foundation.errors import UserError, contained
from robustbench_sparse.foundation.files import write_json
from robustbench_sparse.foundation.locks import locked
from robustbench_sparse.foundation.progress import Progress, Silent
from robustbench_sparse.gate import OFF
from robustbench_sparse.gate.answering import failure_of
from robustbench_sparse.gate.fit import check_fit as _check_fit
from robustbench_sparse.gate.running import Known, run_gate
from robustbench_sparse.given import GivenNetwork, attacks_by_name, take
from robustbench_sparse.judging.fresh import Fresh
from robustbench_sparse.reporting import tables
from robustbench_sparse.runs import names, zoo
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import manifest_of, read_manifest
from robustbench_sparse.runs.provenance import network_identity
from robustbench_sparse.runs.targets import Target
from robustbench_sparse.runs.variants import difference
from robustbench_sparse.sources import adapting
from robustbench_sparse.verdict import judge_network


def evaluate(
    target: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    dataset: str | Mapping[str, Any] | None = None,
    data: Given | None = None,
    attacks: Sequence[str] | Mapping[str, Any] | None = None,
    suite: str | None = None,
    norm: str | None = None,
    eps: float | None = None,
    seed: int = 0,
    limit: int | None = None,
    certificate: str | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    changes: Sequence[str] = (),
    expect_clean: float | None = None,
    mean: str | Sequence[float] | None = None,
    std: str | Sequence[float] | None = None,
    classes: str | Sequence[int] | None = None,
    gate: bool = True,
    trust_plugins: Sequence[str] = (),
    trust_file: bool = False,
    show: Progress | None = None,
) -> pd.DataFrame:
    """Judge one network: a run's folder, ``zoo:NAME``, a shrunk network's file, a factory, or an ``nn.Module``.

    Or what ``sources`` knows: ``torchvision:NAME``, ``timm:NAME``, ``hf:NAME``, ``robustbench:NAME``, files of
    ONNX and of torch.export.

    Args:
        target: what to judge. A factory, ``package.module:function``, is called without arguments and returns the
            network; networks take images in [0, 1], (B, C, H, W), and return logits (B, K).
        weights: safetensors file (or a torch state_dict, read without running code) for a factory's or a library's
            network.
        dataset: name or config entry of the data set; a run's folder and a shrunk network's file know theirs.
        data: images and labels in its place: a pair of arrays or tensors, or a ``TensorDataset``; images uint8 in
            0..255 or floating-point in [0, 1], (N, C, S, S), labels whole numbers, (N,). All of them are test images.
        attacks: names, or label -> config entry; in place of a suite.
        suite: a named list of attacks, see ``suites.SUITES``. Without attacks and suite a network of the zoo is judged
            by those of its record, on as many images and with as many draws, and any other by ``standard``.
        norm, eps: the threat; they know that, too; else l_inf and 8/255.
        seed: seed of the evaluation.
        limit: judge only so many test images.
        certificate: ``off``, ``quick`` or ``full``; as ``evaluation.certificate`` in ``changes``.
        device, data_root, show: as for ``run_benchmark``.
        out: keep the outcomes below this folder, so that a killed evaluation goes on. What is stored there is served
            only for the same network: its tensors, the source of its classes, and its logits on fixed images.
        changes: ``key.path=value`` assignments, for example ``data.path=images.zip``.
        expect_clean: the clean accuracy that the network should have, in percent; see ``check_clean``.
        mean, std: a normalisation in front of the network, in place of its source's: numbers with commas between, or a
            name for both, such as ``imagenet`` or ``none``; see ``sources.preparation``.
        classes: which of the network's logits are the data's classes; see ``sources.classes``.
        gate: look at the network before anything is attacked, see ``gate``; without it the row says so.
        trust_plugins: modules that a stored file may name code of; a file alone never imports anything.
        trust_file: the network's file may run code, where its reader cannot keep it from that (``torch.export``).

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
    network = take(target, weights, data_root, mean=mean, std=std, trust_file=trust_file)
    found = network.found
    given = None
    if data is not None:
        if classes is not None and adapting.are_indices(classes):
            # What is left of the logits are the data's classes: these have no names of their own.
            network = network.choosing(classes, adapting.numbered(classes))
        given = _in_memory(data, dataset, network.model, show)  # kept until the end
    images_of = dataset or found.dataset if given is None else hold(given)
    if images_of is None:
        raise UserError(f"--dataset: expected one of {', '.join(sorted(DATASETS))}")
    raw = _config(
        adapting.with_size(images_of, network.preparation, changes), target, found, attacks, suite, limit
    )
    chosen_norm, chosen_eps = norm or found.norm or "linf", found.eps if eps is None else eps
    raw["threat"] = {"norm": chosen_norm} | ({} if chosen_eps is None else {"eps": float(chosen_eps)})
    if certificate is not None:
        changes = [*changes, f"evaluation.certificate={certificate}"]
    plan = resolve(raw, name="evaluate", changes=changes, schema=NetworkConfig)
    network.check_access(plan)
    images = load_dataset(plan.dataset, data_root)
    own_checks(plan.config.evaluation.checks)
    if plan.dataset.said():
        show.note(f"data: {plan.dataset.said()}")
    if classes is not None and not network.indices:
        network = network.choosing(classes, images.classes)
    for said in network.said():
        show.note(f"{found.name}: {said}")
    return _judged(network, plan, images, chosen, show, seed, out, expect_clean, gate)


def _config(
    dataset: str | Mapping[str, Any] | None,
    target: object,
    found: Target,
    attacks: Sequence[str] | Mapping[str, Any] | None,
    suite: str | None,
    limit: int | None,
) -> dict[str, Any]:
    """What a network is judged by, as a config without its threat."""
    settings: dict[str, Any] = {"limit": limit}
    if attacks is None and suite is None and isinstance(target, str) and target.startswith(zoo.PREFIX):
        recorded = zoo.find(target)
        attacks = recorded.attacks
        settings = {**recorded.evaluation, **({} if limit is None else settings)}
    if attacks is None:
        attacks = attacks_by_name(suite, found.black_box)
    elif not isinstance(attacks, Mapping):
        attacks = {a.replace(":", "_").replace(".", "_"): {"name": a} for a in attacks}
    return {
        "name": "evaluation",
        "data": {"name": dataset} if isinstance(dataset, str) else dict(dataset or {}),
        "attacks": {k: dict(v) if isinstance(v, Mapping) else v for k, v in attacks.items()},
        "evaluation": settings,
    }


def _judged(
    network: GivenNetwork,
    plan: Plan,
    images: Dataset,
    device: torch.device,
    show: Progress,
    seed: int,
    out: str | Path | None,
    expect_clean: float | None,
    gate: bool,
) -> pd.DataFrame:
    """A network looked at by the gate, attacked, and its row."""
    prepared, name = plan.prepare(images, device), network.found.name
    examined = plan.config.evaluation.certificate != "off"
    fresh = Fresh(network.model if examined or gate else None)  # before anything asks it
    _check_fit(network.model, prepared, network.preparation)
    identity = network_identity(
        network.model.cpu().eval(), prepared.channels, prepared.size, [network.found.factory]
    )
    model = network.model.eval().to(device)
    flags = [OFF]
    if gate:
        known = Known(
            preparation=network.preparation,
            expected=expect_clean,
            claim=network.claim_on(images),
            black_box=network.found.black_box,
        )
        with _copied(model, fresh, device) as copied:
            flags = run_gate(copied, images, prepared, known, show)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out) if out is not None else Path(scratch)
        with locked(folder):
            place = _foreign(folder, name, identity, plan, images, seed, network.facts(flags))
            place.prepare(device)
            place.store_foreign()
            with contained(f"{name}: counting its zeros"):
                place.count(model, prepared.channels, prepared.size)
            clean = partial(check_clean, classes=prepared.classes, expected=expect_clean)
            judge_network(
                model,
                place,
                network.judged_by(plan),
                prepared,
                show,
                identity=f"{identity}/{images.fingerprint}",
                title=place.label,
                gate=clean if gate else None,
                fresh=fresh if examined else Fresh(None),
            )
            table = tables.write(folder)
            table.attrs["images"] = prepared.test_indices.tolist()
            return table


@contextmanager
def _copied(model: nn.Module, fresh: Fresh, device: torch.device) -> Iterator[nn.Module]:
    """A copy for questions that leave no trace in the network; itself where it cannot be copied."""
    if fresh.why:
        yield model
        return
    with fresh.inside(fresh.make(device)) as copied:
        yield copied


def _in_memory(given: Given, dataset: object, model: nn.Module, show: Progress) -> Dataset:
    """Images that were handed over, as a data set of as many classes as the network has.

    Raises:
        UserError: they are not as expected.
    """
    if dataset is not None:
        raise UserError("data: expected either data or dataset, got both")
    try:
        x, y = parts_of(given)
        made, note = dataset_of(x, y, _classes_of(model, x, y))
    except DataError as e:
        raise UserError(f"data: {e}") from None
    if note:
        show.note(f"data: {note}")
    return made


def _classes_of(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """How many logits a network gives; where it gives none, what the labels need: it is looked at later on."""
    out: object = None
    try:
        with (
            torch.no_grad()
        ):  # a copy is asked: whether a network minds its first query is a check's business
            out = copy.deepcopy(model).cpu().eval()(torch.zeros(1, *x.shape[1:]))
    except KeyboardInterrupt:
        raise
    except BaseException:
        pass
    if isinstance(out, Tensor) and out.ndim == 2:
        return out.shape[1]
    return max(2, int(y.max()) + 1) if y.numel() and not y.is_complex() else 2


def check_clean(clean: pd.DataFrame, *, classes: int, expected: float | None) -> None:
    """UserError where a network classifies clean images so badly that something must be wrong with how it is fed.

    Args:
        clean: the judge's verdicts on clean images; one without a verdict is none that is classified right.
        classes: number of classes.
        expected: the accuracy that its maker claims, in percent; see ``gate.answering.failure_of``.
    """
    failure = failure_of(torch.tensor(clean["correct"].fillna(0.0).to_numpy()), classes, expected)
    if failure:
        raise UserError(failure)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:MOST_NAME]


def _foreign(
    folder: Path,
    name: str,
    identity: str,
    plan: Plan,
    images: Dataset,
    seed: int,
    about: Mapping[str, Any],
) -> RunFolder:
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
    facts = {"run": label, "seed": seed, "identity": identity, **about}
    return RunFolder.foreign(folder / names.RUNS / run_id, plan, images, facts)
