"""A stored row opened again: its network, its images, and the judge as it was, without touching what is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import SampleRandom
from attacks.transfer import NOISE_OFF
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.plugins import from_file
from robustbench_sparse.config.schema import NetworkConfig
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.devices import choose_device
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_keys
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.given import take
from robustbench_sparse.judging.fresh import Fresh
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from robustbench_sparse.models.build import on_device
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.outcomes import Verdicts, verdicts
from robustbench_sparse.runs.provenance import network_identity
from robustbench_sparse.runs.rebuild import has_recipe
from robustbench_sparse.runs.targets import images_of

BATCH = 256
FEW = 0.005  # share of the clean images on which another processor may round to another class


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is needed to judge further images as a row's own were judged.

    Attributes:
        place: its folder.
        manifest: the benchmark's.
        plan: its threat, attacks and images; without the attacks that are made on another row (``without``).
        without: labels of those.
        dataset, data: as loaded, and as judged.
        judge: of its own network, in float32; it keeps what it makes in a folder of its own.
        found: the stored verdicts.
        identity: names the network and the images, as in the stored outcomes.
    """

    place: RunFolder
    manifest: Mapping[str, Any]
    plan: Plan
    without: list[str]
    dataset: Dataset
    data: PreparedData
    judge: Judge
    found: Verdicts
    identity: str

    @property
    def folder(self) -> Path:
        """The benchmark's."""
        return self.place.path.parents[1]

    def clean(self) -> tuple[Tensor, Tensor]:
        """The judged images in [0, 1], (n, C, S, S), and their labels (n,)."""
        return self.data.gather("test", torch.arange(self.data.count("test")))

    def right(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        stream: str,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Tensor:
        """Share of draws in which the row's network classifies images right, in float32, (B,) on the CPU.

        An image for which its logits are not finite has no verdict: it counts as right, nothing is claimed of it.

        Args:
            x, y: images (B, C, S, S) and labels (B,).
            index: the images' positions in the data set, (B,).
            stream: names the noise of a random network.
            advance: told of every so many images that are done.
        """
        out = []
        for at in torch.split(torch.arange(len(x)), BATCH):
            random = SampleRandom.for_images(self.judge.settings.seed, stream, index[at].tolist())
            _, correct, finite = self.judge.verdict(x[at], y[at], random)
            out.append(torch.where(finite, correct, torch.ones_like(correct)))
            advance(len(at))
        return torch.cat(out) if out else torch.empty(0)


def open_row(
    run: Path,
    scratch: Path,
    show: Progress,
    *,
    network: str | nn.Module | None = None,
    weights: Path | None = None,
    data_root: Path | None = None,
    device: str = "auto",
) -> Row:
    """Open a row that is judged to its end.

    Args:
        run: its folder, within its benchmark's.
        scratch: an empty folder, where the judge keeps what it makes.
        show: where progress goes.
        network: what was judged, where it was not trained here: the folder does not hold it then.
        weights: of such a network's factory.
        data_root: folder of the data sets.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: no such row, one with gaps or of changed files, a network or images that are not the row's, or
            answers that are not those that are stored.
    """
    place = RunFolder.at(run.absolute())
    folder = place.path.parents[1]
    manifest = read_manifest(folder)
    place.seals.check()
    found = verdicts(place.path, manifest)
    if "worst" not in found.columns:
        raise UserError(f"{run}: has no worst case: {'; '.join(found.gaps) or 'no attacks'}")
    plan, without = _plan(manifest)
    dataset = load_dataset(plan.dataset, data_root)
    target = choose_device(device)
    data = plan.prepare(dataset, target)
    model = _network(place, dataset, network, weights)
    identity = str(read_keys(place.path / names.account(names.CLEAN), ("key",))["key"]["identity"])
    if dataset.fingerprint not in identity.split("/") or data.test_indices.tolist() != found.index:
        raise UserError(f"{run}: was judged on other images than {dataset.label} has here")
    settings = JudgeSettings(
        seed=derive(place.seed, "evaluation"), batch_size=BATCH, draws=plan.config.evaluation.draws
    )
    model = on_device(model.eval(), target)
    judge = Judge(model, data, scratch, settings, identity, show, place.label, fresh=Fresh(None))
    row = Row(
        place=place, manifest=manifest, plan=plan, without=without, dataset=dataset, data=data, judge=judge,
        found=found, identity=identity,
    )  # fmt: skip
    _check_answers(row)
    return row


def _plan(manifest: Mapping[str, Any]) -> tuple[Plan, list[str]]:
    """The row's attacks, threat and images, as its table says them; and labels of attacks that need another row."""
    table, settings = manifest["table"], manifest["settings"]
    try:
        kept = {k: v for k, v in settings.items() if v.get("source", NOISE_OFF) == NOISE_OFF}
        raw = {
            "name": "row",
            "data": table["data"],
            "threat": manifest["threat"],
            "attacks": kept,
            "evaluation": {k: table["evaluation"][k] for k in ("limit", "draws")},
        }
    except (KeyError, TypeError, AttributeError):
        raise UserError("its benchmark was written by an earlier version: run it again") from None
    with from_file():
        return resolve(raw, name=names.BENCHMARK, schema=NetworkConfig), [
            k for k in settings if k not in kept
        ]


def _network(
    place: RunFolder, dataset: Dataset, network: str | nn.Module | None, weights: Path | None
) -> nn.Module:
    """The row's own network, as stored, or one that is shown to be it."""
    if has_recipe(place.path):
        if network is not None:
            raise UserError(f"--network: {place.path.name} has its network in its folder")
        return place.network(**images_of(dataset))
    if network is None:
        raise UserError(
            f"{place.path.name}: its network is not in its folder: name it, as in --network mynets:cnn"
        )
    wanted = place.facts.get("identity")
    for model, factory in _as_recorded(place.facts.get("source") or {}, dataset, network, weights):
        model = model.cpu().eval()
        if network_identity(model, dataset.channels, dataset.size, [factory]) == wanted:
            return model
    raise UserError(f"--network: {network} is not the network that {place.path.name} is of")


def _as_recorded(
    source: Mapping[str, Any], dataset: Dataset, network: str | nn.Module, weights: Path | None
) -> Iterator[tuple[nn.Module, object]]:
    """The network as it comes, and with the normalisation and the classes that its row was judged with."""
    prepared = source.get("prepared") or {}
    for mean, std in dict.fromkeys([(None, None), (_text(prepared.get("mean")), _text(prepared.get("std")))]):
        taken = take(network, weights, None, mean=mean, std=std)
        if source.get("classes"):
            taken = taken.choosing([int(i) for i in source["classes"]], dataset.classes)
        yield taken.model, taken.found.factory


def _text(values: Any) -> str | None:
    return ",".join(map(str, values)) if isinstance(values, list) else None


def _check_answers(row: Row) -> None:
    """UserError where the network does not classify the clean images as it is stored."""
    stored, now = row.found.columns["clean"], row.judge.clean()["correct"].fillna(0.0)
    if row.judge.stochastic or len(now) != len(stored):
        return
    other = int((now.to_numpy() != stored.to_numpy()).sum())
    if other > max(1, FEW * len(stored)):
        raise UserError(
            f"{row.place.path.name}: {other} of {len(stored)} clean images are classified otherwise here than it is "
            "stored: another network, other images, or another processor's rounding"
        )
