"""The file of a shrunk network: its weights, and what is needed to build it again without running anyone's code."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import fill, load_weights, tensors_hash, write_atomically
from robustbench_sparse.models.skips import SkipLayer
from robustbench_sparse.runs.rebuild import network_of
from robustbench_sparse.sparsity.shrink.calls import MIXING, NORMS

FORMAT = 1
KEY = "robustbench_sparse"  # of safetensors' table of metadata


def save_shrunk(path: Path, model: nn.Module, record: Mapping[str, Any]) -> None:
    """Write a shrunk network, atomically.

    Args:
        path: the file.
        model: the network.
        record: how to build the network that it was made from: ``run``, the content of a run's ``run.json``, or
            ``factory``, the reference of a function; and ``images``: channels, size and classes.
    """
    tensors = {name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}
    about = {"format": FORMAT, **record, "widths": widths_of(model), "digest": tensors_hash(tensors)}
    if skips := skips_of(model):
        about["skips"] = skips
    data = save(tensors, {KEY: json.dumps(about, sort_keys=True)})
    write_atomically(path, lambda f: f.write(data))


def load_shrunk(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read a shrunk network back, in eval mode on the CPU.

    Args:
        path: the file.
        model: the network that it was made from, which is changed in place; needed where a factory made it, as the
            file's word is not enough to run a function.

    Raises:
        UserError: no such file, or one that is damaged, changed, or not of a shrunk network.
    """
    path = Path(path)
    about = record_of(path)
    if about is None:
        raise UserError(
            f"{path}: not a file of robustbench-sparse shrink: it does not say how to build its network"
        )
    weights = load_weights(path)
    try:
        changed = about["digest"] != tensors_hash(weights)
        widths, images = about["widths"], about["images"]
        if model is None and not about.get("run"):
            raise UserError(
                f"{path}: made from {about['factory']}: name it, as in {about['factory']} --weights {path.name}"
            )
        if not changed and model is None:
            model = network_of(
                about["run"], path, int(images["channels"]), int(images["size"]), int(images["classes"])
            )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{path}: damaged: {type(e).__name__}: {one_line(e)}") from None
    if changed or model is None:
        raise UserError(f"{path}: its weights have changed since it was written; shrink the network again")
    set_widths(model, widths, path)
    set_skips(model, about.get("skips", {}), path)
    fill(model, weights, path)
    return model.eval()


def record_of(path: Path) -> dict[str, Any] | None:
    """What a file says of its network; None where it is not a shrunk one.

    Raises:
        UserError: no such file, or a damaged one.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: {'no regular' if path.exists() else 'no such'} file")
        if path.suffix != ".safetensors":
            return None
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
        about = None if text is None else json.loads(text)
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path}: not a readable checkpoint: {one_line(e)[:200]}") from None
    if about is None:
        return None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path}: expected format {FORMAT} of shrunk networks; this version reads no other")
    return about


def widths_of(model: nn.Module) -> dict[str, list[int]]:
    """Inputs and outputs of every convolution, linear and batch-norm layer by name; groups are not divided out."""
    out: dict[str, list[int]] = {}
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d):
            out[name] = [m.in_channels, m.out_channels]
        elif isinstance(m, nn.Linear):
            out[name] = [m.in_features, m.out_features]
        elif isinstance(m, NORMS):
            out[name] = [m.num_features, m.num_features]
    return out


def set_widths(model: nn.Module, widths: Mapping[str, Any], source: Path) -> None:
    """Cut the layers of a network to widths, in place; which channels stay is left to the weights that come next.

    Raises:
        UserError: widths of other layers, or wider ones.
    """
    own = widths_of(model)
    if not isinstance(widths, Mapping) or own.keys() != widths.keys():
        raise UserError(f"{source}: weights of another architecture: the layers have other names")
    for name, now in own.items():
        wanted = widths[name]
        fine = isinstance(wanted, list) and len(wanted) == 2 and all(type(w) is int for w in wanted)
        if not fine or not all(1 <= w <= n for w, n in zip(wanted, now, strict=True)):
            raise UserError(f"{source}: {name}: expected widths of 1 to {now}, got {wanted}")
        if wanted != now:
            _cut(model.get_submodule(name), *wanted)


def skips_of(model: nn.Module) -> dict[str, list[int]]:
    """What every layer that may have skips reads by them, by name; see ``models.skips.SkipLayer``."""
    return {name: list(m.sources) for name, m in model.named_modules() if isinstance(m, SkipLayer)}


def set_skips(model: nn.Module, skips: Any, source: Path) -> None:
    """Leave a network the skips that a file names, in place; UserError for those of other layers, or further ones."""
    if not isinstance(skips, Mapping) or skips_of(model).keys() != skips.keys():
        raise UserError(f"{source}: weights of another architecture: other layers have skips")
    for name, sources in skips.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, SkipLayer)
        try:
            layer.keep([operator.index(i) for i in sources])
        except (TypeError, ValueError) as e:
            raise UserError(f"{source}: {name}: {one_line(e)}") from None


def _cut(layer: nn.Module, inputs: int, outputs: int) -> None:
    if isinstance(layer, MIXING):
        layer.weight = _first(layer.weight[:outputs, :inputs])
    if isinstance(layer, nn.Conv2d):
        layer.in_channels, layer.out_channels = inputs, outputs
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs
    elif isinstance(layer, NORMS):
        layer.num_features = outputs
        if layer.weight is not None:
            layer.weight = _first(layer.weight[:outputs])
        for name in ("running_mean", "running_var"):
            tensor = getattr(layer, name)
            if tensor is not None:
                setattr(layer, name, tensor[:outputs].clone())
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        layer.bias = _first(bias[:outputs])


def _first(part: Tensor) -> nn.Parameter:
    return nn.Parameter(part.detach().clone())
