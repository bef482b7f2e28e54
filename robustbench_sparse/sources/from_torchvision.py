"""``torchvision:NAME``: classification networks of torchvision, with weights of its cache or of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from robustbench_sparse.foundation.errors import UserError, near, one_line
from robustbench_sparse.foundation.files import sha256
from robustbench_sparse.sources import state_dicts
from robustbench_sparse.sources.base import Request, Source, Sourced
from robustbench_sparse.sources.front import fronted
from robustbench_sparse.sources.preparation import Preparation, crop_of

CLASSES = 1000  # of ImageNet, which torchvision's own weights are for
# These two bring images from ImageNet's normalisation to another inside, where their weights are torchvision's.
TRANSFORMING = ("googlenet", "inception_v3")


@dataclass(frozen=True, kw_only=True)
class Torchvision(Source):
    """Networks of torchvision.

    With torchvision's own weights, known by the file's name, the normalisation, size and crop are those that it says
    they go with; of other files nothing is known, and nothing is put in front.
    """

    key: ClassVar[str] = "torchvision"
    example: ClassVar[str] = "torchvision:resnet18"

    def load(self, request: Request) -> Sourced:
        """See ``Source.load``."""
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        name = request.name.lower()
        if name not in known:
            raise UserError(
                f"torchvision:{request.name}: no such network for classification{near(name, known)}"
            )
        members = list(torchvision.models.get_model_weights(name))
        path = request.weights or _cached(name, members)
        entry = next((m for m in members if Path(m.url).name == path.name), None)
        model, notes = _filled(name, path, entry)
        preparation = _preparation(entry)
        claim = None if entry is None else entry.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
        return Sourced(
            model=fronted(model, preparation.mean, preparation.std),
            name=name,
            weights=path,
            preparation=preparation,
            labels=() if entry is None else tuple(entry.meta.get("categories", ())),
            claim=claim,
            claim_of="ImageNet" if claim is not None else "",
            notes=notes,
        )


def _cached(name: str, members: list[Any]) -> Path:
    """The file of the default weights, or of any others, in torch's cache."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    default = members[-1:]  # the last one is torchvision's default
    for member in [*default, *members]:
        path = folder / Path(member.url).name
        if path.is_file():
            digits = path.stem.rpartition("-")[2]
            if not sha256(path).startswith(digits):
                raise UserError(
                    f"{path}: its bytes are not those that its name promises: delete it and fetch it again"
                )
            return path
    raise UserError(
        f"torchvision:{name}: no weights in {folder}, and nothing is downloaded unasked: give a file with --weights, "
        f"or fetch torchvision's: python -c \"import torchvision; torchvision.models.{name}(weights='DEFAULT')\""
    )


def _filled(name: str, path: Path, entry: Any) -> tuple[nn.Module, list[str]]:
    model = _built(name, CLASSES, entry)
    state, notes = state_dicts.read(path)
    named, _ = state_dicts.fitted(state, model.state_dict())
    classes, _ = state_dicts.sizes_of(named, model.state_dict())
    if classes is not None and classes != CLASSES:
        model = _built(name, classes, entry)
        notes = [f"{classes} classes, as the file has"]
    else:
        notes = []
    return model, [*state_dicts.load(model, path), *notes]


def _built(name: str, classes: int, entry: Any) -> nn.Module:
    import torchvision

    settings: dict[str, Any] = {}
    if name in TRANSFORMING:
        settings = {"transform_input": entry is not None, "init_weights": False}
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **settings)
    except (TypeError, ValueError) as e:
        raise UserError(f"torchvision:{name}: cannot be built: {one_line(e)}") from None
    return model


def _preparation(entry: Any) -> Preparation:
    """What torchvision says its weights go with; of other weights nothing."""
    if entry is None:
        return Preparation(origin="of these weights nothing is known; --mean puts a normalisation in front")
    preset = entry.transforms()
    size, shorter = int(preset.crop_size[0]), int(preset.resize_size[0])
    return Preparation(
        mean=tuple(float(v) for v in preset.mean),
        std=tuple(float(v) for v in preset.std),
        size=size,
        crop=crop_of(size, shorter),
        interpolation=str(preset.interpolation.value),
        origin=f"as torchvision says of {entry.name}",
    )
