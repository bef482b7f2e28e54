"""``hf:NAME``: image classifiers of transformers (the extra ``hf``), from a folder or the local cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from robustbench_sparse.foundation.errors import UserError, check_installed, one_line
from robustbench_sparse.sources import state_dicts
from robustbench_sparse.sources.base import Request, Source, Sourced
from robustbench_sparse.sources.front import Logits, fronted
from robustbench_sparse.sources.preparation import Preparation, crop_of

PREPARING = "preprocessor_config.json"
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
_BYTES = 1 / 255  # what an image of bytes is multiplied by


@dataclass(frozen=True, kw_only=True)
class Transformers(Source):
    """Classifiers of transformers: a folder of ``save_pretrained``, or a name that was fetched before.

    Mean, std, size, interpolation and crop are those of its ``preprocessor_config.json``. Only safetensors are read,
    and no code that comes with a network is run.
    """

    key: ClassVar[str] = "hf"
    extra: ClassVar[str] = "hf"
    example: ClassVar[str] = "hf:FOLDER"

    def load(self, request: Request) -> Sourced:
        """See ``Source.load``."""
        check_installed(("transformers",), self.extra)
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        folder = Path(request.name)
        if folder.exists() and not (folder / "config.json").is_file():
            raise UserError(f"hf:{request.name}: no config.json in it: expected what save_pretrained writes")
        classifier = transformers.AutoModelForImageClassification
        offline = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(request.name, **offline)
            if request.weights is None:
                network = classifier.from_pretrained(
                    request.name, config=config, use_safetensors=True, **offline
                )
            else:
                network = classifier.from_config(config, trust_remote_code=False)
        except KeyboardInterrupt:
            raise
        except Exception as e:  # whatever its readers raise of a folder
            raise UserError(_trouble(request.name, folder, e)) from None
        notes = [] if request.weights is None else state_dicts.load(network, request.weights)
        preparation = _preparation(request.name)
        labels = getattr(config, "id2label", None) or {}
        return Sourced(
            model=fronted(Logits(network.float().eval()), preparation.mean, preparation.std),
            name=folder.name if folder.exists() else request.name,
            weights=request.weights,
            preparation=preparation,
            labels=tuple(str(labels[i]) for i in sorted(labels)),
            notes=[*notes, "its .logits are what is attacked"],
        )


def _trouble(name: str, folder: Path, error: Exception) -> str:
    if not folder.exists():
        return (
            f"hf:{name}: not here, and nothing is downloaded unasked: name a folder of save_pretrained, or fetch it: "
            f"hf download {name}"
        )
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        return (
            f"hf:{name}: its weights could run code: save them as safetensors, model.save_pretrained(FOLDER)"
        )
    return f"hf:{name}: cannot be read: {type(error).__name__}: {one_line(error)[:200]}"


def _preparation(name: str) -> Preparation:
    """What the file beside a network says of its images; without one nothing is put in front."""
    path = _file_of(name)
    if path is None:
        return Preparation(origin=f"no {PREPARING}: nothing is known; --mean puts a normalisation in front")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _read(found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError(f"{path}: damaged: {type(e).__name__}: {one_line(e)[:160]}") from None


def _file_of(name: str) -> Path | None:
    if Path(name).exists():
        path = Path(name) / PREPARING
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, PREPARING)
    return Path(found) if isinstance(found, str) else None


def _read(found: dict[str, Any]) -> Preparation:
    mean = std = None
    if found.get("do_normalize", True) and "image_mean" in found:
        mean, std = (tuple(map(float, found[key])) for key in ("image_mean", "image_std"))
        factor = float(found.get("rescale_factor", _BYTES)) if found.get("do_rescale", True) else 1.0
        # Images come in [0, 1] here; what the file means is of bytes times its factor.
        scale = 255 * factor
        mean, std = tuple(m / scale for m in mean), tuple(s / scale for s in std)
    size, crop = None, None
    if found.get("do_resize", True) and found.get("size") is not None:
        size, crop = _sizes(found)
    number = found.get("resample", 2)
    return Preparation(
        mean=mean,
        std=std,
        size=size,
        crop=crop,
        interpolation=_RESAMPLING[int(number)] if size is not None else None,
        origin=f"as {PREPARING} says",
    )


def _sizes(found: dict[str, Any]) -> tuple[int, float | None]:
    """Side of the images, and the share that is kept of the resized ones."""
    size = found["size"]
    cut = found.get("crop_size") if found.get("do_center_crop", False) else None
    if isinstance(cut, dict):
        cut = cut["height"]
    if not isinstance(size, dict):  # older files have one number: a square where nothing is cut out
        return (int(size), None) if cut is None else (int(cut), crop_of(int(cut), int(size)))
    if "shortest_edge" in size:
        shorter = int(size["shortest_edge"])
        if cut is None and "crop_pct" in found and found["crop_pct"] is not None and shorter < 384:
            return shorter, float(found["crop_pct"])  # ConvNeXt's: from 384 pixels on it squeezes the image
        return (
            (shorter, None if "crop_pct" in found else 1.0)
            if cut is None
            else (int(cut), crop_of(int(cut), shorter))
        )
    height = int(size["height"])
    return (height, None) if cut is None else (int(cut), crop_of(int(cut), height))
