"""A network as an ONNX file, verified with onnxruntime."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.base import NoiseOff, RandomModule
from robustbench_sparse.engine.batchnorm_folding import replace_layer
from robustbench_sparse.foundation import errors
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import write_atomically
from robustbench_sparse.sparsity.shrink.proof import TOLERANCE
from robustbench_sparse.sparsity.shrink.surgery import EXTRA

BATCHES = (1, 5)  # the file takes batches of any size; these are tried


def check_installed(extra: str = EXTRA) -> None:
    """Raise MissingExtra where a package that exporting or verifying needs is not there; ``extra`` names who asks."""
    errors.check_installed(("onnx", "onnxscript", "onnxruntime"), extra)


def exported(model: nn.Module, x: Tensor) -> bytes:
    """The network as the bytes of an ONNX file: ``images`` (batch, C, H, W) -> ``logits`` (batch, K).

    Noise is off in the file: a random network is exported as its own mean path.

    Args:
        model: in eval mode; it stays as it is.
        x: at least two images (B, C, H, W).

    Raises:
        MissingExtra: see ``check_installed``.
        UserError: a network that torch cannot export.
    """
    check_installed()
    silent = without_noise(model)
    batch = torch.export.Dim("batch")
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                silent,
                (x[:2].cpu(),),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: batch},),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            out: bytes = program.model_proto.SerializeToString()
    except Exception as e:  # exporters raise what they like
        raise UserError(f"--onnx: torch cannot export this network: {one_line(e)[:200]}") from None
    return out


def verified(data: bytes, model: nn.Module, x: Tensor) -> float:
    """The largest difference between the file's logits and the network's, noise off, on images (B, C, H, W).

    Raises:
        UserError: a difference beyond the tolerance, or a file that onnxruntime cannot run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with torch.no_grad():
        wanted = NoiseOff(model)(x).float().cpu()
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        given = x.cpu().float()
        parts = [session.run(["logits"], {"images": given.numpy()})[0]]
        parts += [session.run(["logits"], {"images": given[:n].numpy()})[0] for n in BATCHES]
    except Exception as e:
        raise UserError(f"--onnx: onnxruntime cannot run the file: {one_line(e)[:200]}") from None
    worst = max(float((torch.from_numpy(p) - wanted[: len(p)]).abs().max()) for p in parts)
    allowed = TOLERANCE * max(1.0, float(wanted.abs().max()))
    if not worst <= allowed:
        raise UserError(
            f"--onnx: onnxruntime's logits are off by {worst:.1e}, {allowed:.1e} is allowed; nothing was written"
        )
    return worst


def write(path: Path, data: bytes) -> None:
    """Write the file atomically."""
    write_atomically(path, lambda f: f.write(data))


def without_noise(model: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU whose random layers pass on what they are given."""
    silent = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for name, module in list(silent.named_modules()):
        if isinstance(module, RandomModule):
            if not name:
                return nn.Identity()
            replace_layer(silent, name, nn.Identity())
    return silent
