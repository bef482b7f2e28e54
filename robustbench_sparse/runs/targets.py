"""What a command works on: a run's folder, the file of a shrunk network, a factory, or a network itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plugins import import_object
from robustbench_sparse.config.schema import NetworkConfig
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import sha256
from robustbench_sparse.runs import names, zoo
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import check_run_folder
from robustbench_sparse.runs.rebuild import plan_of, stored_plan
from robustbench_sparse.runs.shrunk_file import load_shrunk, record_of
from robustbench_sparse.sources import SOURCES, Sourced, find, state_dicts
from robustbench_sparse.sources.preparation import UNKNOWN, Preparation

EXPECTED = (
    "expected a run's folder, zoo:NAME, a file of robustbench-sparse shrink or package.module:factory; or "
    f"{', '.join(f'{key}:NAME' for key in SOURCES)}, an .onnx file or a .pt2 file"
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A network, and what is known of it; a part that is not known is None or empty.

    Attributes:
        model: in eval mode, on the CPU.
        name: what to call it.
        identity: names its weights; ``module`` where nothing but the network itself does.
        factory: what made it, where a factory did: its source belongs to what the network is.
        weights: the file they were read from.
        dataset: config entry of its data set.
        norm, eps: its benchmark's threat.
        record: how to build it, see ``shrunk_file.save_shrunk``.
        images: channels, size and classes of its images.
        asked: the shares of zeros that its methods were asked for, see ``claims.against_asked``.
        preparation: what images it was made for, and what its source put in front of it.
        black_box: it answers and has no gradient.
        labels: names of its classes, in the order of its logits; empty where they are not known.
        claim: the clean accuracy that its maker states, in percent, on the test images of ``claim_of``.
        notes: what was done to it on the way, a sentence each.
    """

    model: nn.Module
    name: str
    identity: str
    factory: object = None
    weights: Path | None = None
    dataset: Any = None
    norm: str | None = None
    eps: float | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    preparation: Preparation = UNKNOWN
    black_box: bool = False
    labels: tuple[str, ...] = ()
    claim: float | None = None
    claim_of: str = ""
    notes: list[str] = field(default_factory=list)


def resolve_target(
    target: str | Path | nn.Module,
    weights: str | Path | None = None,
    data_root: str | Path | None = None,
    *,
    trust_file: bool = False,
    answers_only: bool = False,
) -> Target:
    """Find a network.

    Args:
        target: a run's folder, or the file of weights in one; ``zoo:NAME``, a network that comes with the package; a
            file of ``shrink``; what ``sources`` knows, such as ``timm:NAME`` or an ONNX file; a factory
            ``package.module:function``, called without arguments; or the network, which stays as it is.
        weights: file of weights for a factory's or a library's network; one of ``shrink`` cuts it to its widths.
        data_root: folder of the data sets; a run knows from its data set which images its network takes.
        trust_file: the file may run code, where its reader cannot keep it from that.
        answers_only: a network that only answers will do, too.

    Raises:
        UserError: nothing of the kind, damaged files, or a factory that fails.
    """
    if isinstance(target, nn.Module):
        model, notes = state_dicts.folded_copy(target)
        return Target(model=model, name=type(target).__name__, identity="module", notes=notes)
    if str(target).startswith(zoo.PREFIX):
        if weights is not None:
            raise UserError("--weights: a network of the zoo has its own weights")
        return _from_zoo(zoo.find(str(target)))
    sourced = find(str(target), None if weights is None else Path(weights), trust_file)
    if sourced is not None and sourced.black_box and not answers_only:
        raise UserError(f"{target}: this network only answers, which is enough for evaluate and nothing else")
    if sourced is not None:
        return _from_source(sourced, str(target))
    path = Path(str(target))
    try:
        path.exists()
    except OSError as e:  # no name that the system takes
        raise UserError(f"{target}: {one_line(e.strerror or e)}") from None
    if path.name == names.WEIGHTS and (path.parent / names.RUN).is_file():
        path = path.parent
    if path.exists() and weights is not None:
        what = "a run's folder" if path.is_dir() else "a file"
        raise UserError(f"--weights: {what} has its own weights")
    if path.is_dir():
        check_run_folder(path)
        return _from_run(path, data_root)
    if path.is_file():
        return _from_file(path)
    if ":" not in str(target):
        raise UserError(f"{target}: {'no such file' if path.suffix == '.safetensors' else EXPECTED}")
    return _from_factory(str(target), weights)


def data_of(
    target: Target,
    dataset: str | None = None,
    data_root: str | Path | None = None,
    changes: Sequence[str] = (),
) -> Dataset | None:
    """The data set that a command names, else the target's own; None where neither is known.

    Args:
        target: see ``resolve_target``.
        dataset: name of a data set.
        data_root: folder of the data sets.
        changes: ``key.path=value`` assignments, for example ``data.path=images.zip``.

    Raises:
        UserError: unknown, missing or damaged data, or images of another shape than the network's.
    """
    entry = {"name": dataset} if dataset is not None else target.dataset
    if entry is None:
        return None
    raw = {"name": "images", "data": dict(entry)}
    plan = resolve(raw, name="--dataset", changes=changes, schema=NetworkConfig)
    data = load_dataset(plan.dataset, data_root)
    if target.images and images_of(data) != dict(target.images):
        raise UserError(f"--dataset: expected images like {dict(target.images)}, got {images_of(data)}")
    return data


def images_of(dataset: Dataset) -> dict[str, int]:
    """Channels, size and classes of a data set's images."""
    return {"channels": dataset.channels, "size": dataset.size, "classes": len(dataset.classes)}


def _from_run(path: Path, data_root: str | Path | None) -> Target:
    plan = stored_plan(path)
    own = load_dataset(plan.dataset, data_root)
    place = RunFolder.at(path)
    model = place.network(**images_of(own))
    training = place.training()
    assert training is not None
    return Target(
        model=model,
        name=place.label,
        identity=training["weights_sha256"],
        weights=place.weights,
        dataset=plan.config.data,
        norm=plan.threat.norm,
        eps=plan.threat.eps,
        record={"run": place.facts},
        images=images_of(own),
        asked=list(training["asked"]),
    )


def _from_zoo(network: zoo.ZooNetwork) -> Target:
    place = network.place
    training = place.training()
    assert training is not None
    return Target(
        model=place.network(**network.images),
        name=network.name,
        identity=training["weights_sha256"],
        weights=place.weights,
        dataset=network.data,
        norm=network.norm,
        eps=network.eps,
        record={"run": place.facts},
        images=network.images,
        asked=list(training["asked"]),
        claim=network.row.get("clean"),
        claim_of=network.dataset,
    )


def _from_source(found: Sourced, reference: str) -> Target:
    path = found.weights
    return Target(
        model=found.model,
        name=found.name,
        identity="module" if path is None else sha256(path),
        weights=path,
        record={"factory": reference},
        preparation=found.preparation,
        black_box=found.black_box,
        labels=found.labels,
        claim=found.claim,
        claim_of=found.claim_of,
        notes=list(found.notes),
    )


def _from_file(path: Path) -> Target:
    model, about = load_shrunk(path), record_of(path)
    assert about is not None
    plan = plan_of(about["run"], path)
    return Target(
        model=model,
        name=path.stem,
        identity=sha256(path),
        weights=path,
        dataset=plan.config.data,
        norm=plan.threat.norm,
        eps=plan.threat.eps,
        record={"run": about["run"]},
        images=about["images"],
    )


def _from_factory(reference: str, weights: str | Path | None) -> Target:
    factory = import_object(reference)
    try:
        model = factory()
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        raise UserError(f"{reference}: calling it failed: {type(e).__name__}: {one_line(e)}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"{reference}: expected it to return a torch.nn.Module, got {type(model).__name__}")
    name, record = reference.partition(":")[2], {"factory": reference}
    if weights is None:
        notes = state_dicts.fold(model)
        return Target(
            model=model.eval(), name=name, identity="module", factory=factory, record=record, notes=notes
        )
    path = Path(weights)
    if record_of(path) is not None:
        load_shrunk(path, model)
        notes = []
    else:
        notes = state_dicts.load(model, path)
    return Target(
        model=model.eval(),
        name=name,
        identity=sha256(path),
        factory=factory,
        weights=path,
        record=record,
        notes=notes,
    )
