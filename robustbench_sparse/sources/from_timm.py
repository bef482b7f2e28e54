"""``timm:NAME``: networks of timm (the extra ``timm``), with local weights; and folders that timm has written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from robustbench_sparse.foundation.errors import UserError, check_installed, near, one_line
from robustbench_sparse.sources import state_dicts
from robustbench_sparse.sources.base import Request, Source, Sourced, no_weights_here
from robustbench_sparse.sources.front import fronted
from robustbench_sparse.sources.preparation import Preparation

FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class Timm(Source):
    """Networks of timm; mean, std, size, interpolation and crop are those of the network's own configuration there."""

    key: ClassVar[str] = "timm"
    extra: ClassVar[str] = "timm"
    example: ClassVar[str] = "timm:resnet18.a1_in1k"

    def load(self, request: Request) -> Sourced:
        """See ``Source.load``."""
        check_installed(("timm",), self.extra)
        import timm

        folder = Path(request.name)
        local = (folder / "config.json").is_file()
        if local and request.weights is not None:
            no_weights_here("a folder of timm's")
        name = f"local-dir:{folder.absolute()}" if local else request.name
        architecture = request.name.partition(".")[0]
        if not local and not timm.is_model(architecture):
            known = timm.list_models()
            raise UserError(f"timm:{request.name}: no such network{near(architecture, known)}")
        model = _built(name, request.name, {})
        path = request.weights or (_in_folder(folder) if local else _cached(model, request.name))
        model, notes = _filled(model, name, request.name, path)
        config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
        preparation = _preparation(config, request.name, model)
        return Sourced(
            model=fronted(model, preparation.mean, preparation.std),
            name=folder.name if local else request.name,
            weights=path,
            preparation=preparation,
            labels=tuple(config.get("label_names") or ()),
            notes=notes,
        )


def _built(name: str, shown: str, settings: dict[str, Any]) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **settings)
    except Exception as e:  # of what a folder or a name may say timm raises anything
        raise UserError(f"timm:{shown}: cannot be built: {type(e).__name__}: {one_line(e)[:200]}") from None
    return model


def _filled(model: nn.Module, name: str, shown: str, path: Path) -> tuple[nn.Module, list[str]]:
    """The network with as many classes and channels as the file has, and its weights."""
    named, _ = state_dicts.fitted(state_dicts.read(path)[0], model.state_dict())
    classes, channels = state_dicts.sizes_of(named, model.state_dict())
    settings = {"num_classes": classes, "in_chans": channels}
    changed = {key: value for key, value in settings.items() if value is not None}
    if changed:
        model = _built(name, shown, changed)
    words = {"num_classes": "classes", "in_chans": "channels"}
    notes = [f"{value} {words[key]}, as the file has" for key, value in changed.items()]
    return model, [*state_dicts.load(model, path), *notes]


def _in_folder(folder: Path) -> Path:
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"timm:{folder}: no weights in it (expected {' or '.join(FILES)})")
    return path


def _cached(model: nn.Module, name: str) -> Path:
    """The network's own weights, where they were fetched before."""
    repository = getattr(model, "pretrained_cfg", {}).get("hf_hub_id")
    if repository:
        from huggingface_hub import try_to_load_from_cache

        for file in FILES:
            found = try_to_load_from_cache(repository, file)
            if isinstance(found, str):
                return Path(found)
    raise UserError(
        f"timm:{name}: no weights of it are here, and nothing is downloaded unasked: give a file with --weights, or "
        f"fetch timm's: python -c \"import timm; timm.create_model('{name}', pretrained=True)\""
    )


def _preparation(config: dict[str, Any], name: str, model: nn.Module) -> Preparation:
    mean, std = (tuple(map(float, config.get(key) or ())) for key in ("mean", "std"))
    size = (list(config.get("input_size") or ()) + [None] * 3)[1]
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    # A network that was built for grey images has the configuration of the one for colours.
    fits = mean and len(mean) == len(std) and (first is None or len(mean) in (1, first.in_channels))
    interpolation = config.get("interpolation") or "bicubic"
    return Preparation(
        mean=mean if fits else None,
        std=std if fits else None,
        size=None if size is None else int(size),
        crop=config.get("crop_pct"),
        interpolation="bicubic" if interpolation == "random" else str(interpolation),
        origin=f"as timm says of {config.get('architecture') or name}",
    )
