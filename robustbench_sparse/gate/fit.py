"""Whether a network takes such images and gives logits: one pass, before anything else is asked of it."""

from __future__ import annotations

import torch
from torch import nn

from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.sources.preparation import Preparation


def check_fit(model: nn.Module, data: PreparedData, preparation: Preparation | None = None) -> None:
    """One forward pass, so that a network for other images is found before any attack.

    Args:
        model: the network.
        data: the images.
        preparation: what images it was made for.

    Raises:
        UserError: it fails on such images, or answers with anything but finite numbers of logits (1, K).
    """
    x = torch.zeros(1, data.channels, data.size, data.size)
    try:
        with torch.no_grad():
            out: object = model.cpu().eval()(x.clone())
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        reason = f"{type(e).__name__}: {one_line(e)[:160]}"
        raise UserError(
            f"the network does not take images of shape {tuple(x.shape[1:])}: {reason}{_cure(data, preparation)}"
        ) from None
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
        more = out.ndim == 2 and len(out) == 1 and out.shape[1] > data.classes
        cure = "; --classes says which of its classes are the data's" if more else ""
        raise UserError(
            f"the network gives {tuple(out.shape)} for one image, expected (1, {data.classes}){cure}"
        )


def _cure(data: PreparedData, preparation: Preparation | None) -> str:
    if preparation is None or preparation.size in (None, data.size):
        return ""
    side = preparation.size
    return f"; it was made for {side} x {side} pixels: of an image_folder --set data.size={side}"
