"""``robustbench:NAME``: networks of RobustBench's zoo, by their package where it is installed, from local files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from robustbench_sparse.foundation.errors import UserError, near, one_line
from robustbench_sparse.foundation.files import read_state
from robustbench_sparse.sources import state_dicts
from robustbench_sparse.sources.base import Request, Source, Sourced
from robustbench_sparse.sources.preparation import Preparation

FOLDER = Path("models")  # where their own loader keeps what it fetched: models/<dataset>/<threat>/<name>.pt
DEFAULT = ("cifar10", "Linf")
EPOCHS = ("last", "best")  # two networks in one file: theirs is the last


@dataclass(frozen=True, kw_only=True)
class RobustBench(Source):
    """Networks of RobustBench: ``NAME``, or ``DATASET/THREAT/NAME`` for others than cifar10/Linf.

    Their package builds the network, with its normalisation inside; weights are read as all others are, so that their
    files run no code here. Ensembles and networks that timm holds are not among them.
    """

    key: ClassVar[str] = "robustbench"
    example: ClassVar[str] = "robustbench:cifar10/Linf/Carmon2019Unlabeled"

    def load(self, request: Request) -> Sourced:
        """See ``Source.load``."""
        dataset, threat, name = self._parts(request.name)
        entry = _entry(dataset, threat, name)
        path = request.weights or FOLDER / dataset / threat / f"{name}.pt"
        if not path.is_file():
            raise UserError(
                f"robustbench:{name}: {path} is not there, and nothing is downloaded unasked: give it with --weights, "
                f"or fetch it by their robustbench.load_model({name!r}, dataset={dataset!r}, threat_model={threat!r})"
            )
        try:
            model = entry["model"]()
        except KeyboardInterrupt:
            raise
        except Exception as e:  # it is their code
            raise UserError(
                f"robustbench:{name}: building it failed: {type(e).__name__}: {one_line(e)[:200]}"
            ) from None
        if not isinstance(model, nn.Module):
            raise UserError(f"robustbench:{name}: expected a network, got {type(model).__name__}")
        return Sourced(
            model=model.eval(),
            name=name,
            weights=path,
            preparation=Preparation(origin="RobustBench's networks have their normalisation inside"),
            notes=_filled(model, path),
        )

    def _parts(self, text: str) -> tuple[str, str, str]:
        parts = text.split("/")
        if len(parts) == 1:
            return (*DEFAULT, text)
        if len(parts) != 3:
            raise UserError(f"robustbench:{text}: expected NAME or DATASET/THREAT/NAME, as in {self.example}")
        return parts[0].lower().replace("_", "").replace("-", ""), parts[1], parts[2]


def _entry(dataset: str, threat: str, name: str) -> dict[str, Any]:
    """What their zoo says of a network."""
    try:
        from robustbench.model_zoo import model_dicts
        from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    except ImportError as e:
        if (e.name or "robustbench").partition(".")[0] == "robustbench":
            raise UserError(
                "robustbench:NAME needs RobustBench's own package, which is not installed: its README says how"
            ) from None
        raise UserError(
            f"robustbench:{name}: their package cannot be imported: {one_line(e)[:200]}"
        ) from None
    try:
        known = model_dicts[BenchmarkDataset(dataset)][ThreatModel(threat)]
    except (ValueError, KeyError):
        raise UserError(
            f"robustbench:{dataset}/{threat}/{name}: expected cifar10, cifar100 or imagenet, and Linf or L2"
        ) from None
    if name not in known:
        raise UserError(
            f"robustbench:{name}: no such network for {dataset} and {threat}{near(name, list(known))}"
        )
    found: dict[str, Any] = known[name]
    if not isinstance(found.get("gdrive_id"), str):
        raise UserError(
            f"robustbench:{name}: its weights are in several files or in timm: make the network with their load_model "
            "in a factory, package.module:function"
        )
    return found


def _filled(model: nn.Module, path: Path) -> list[str]:
    """Their weights in their network, which may be saved without its normalisation, and what was undone."""
    state = read_state(path)
    chosen = next(
        (key for key in EPOCHS if isinstance(state, dict) and isinstance(state.get(key), dict)), None
    )
    tensors, notes = state_dicts.taken(state if chosen is None else state[chosen], path)
    own = model.state_dict()
    named, more = state_dicts.fitted(tensors, own)
    missing = [n for n in own if n not in named]
    if missing and all(n.rpartition(".")[2] in state_dicts.NORMALISING for n in missing):
        named |= {n: own[n] for n in missing}
        more = [*more, "its normalisation is that of the network's code, the file has none"]
    state_dicts.put(model, named, path)
    return [*([] if chosen is None else [f"the file's {chosen!r}"]), *notes, *more, *state_dicts.fold(model)]
