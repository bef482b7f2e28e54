"""An ``.onnx`` file: a network that answers and has no gradient, run by onnxruntime (the extra ``onnx``)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_sparse.foundation.errors import UserError, check_installed
from robustbench_sparse.sources.base import Request, Source, Sourced, check_file, no_weights_here
from robustbench_sparse.sources.front import in_parts
from robustbench_sparse.sources.preparation import Preparation
from robustbench_sparse.sparsity.quantise.onnx_network import session_of

MOST_BYTES = 1 << 31  # the format's own limit of one file
_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
}


class OnnxAnswers(nn.Module):
    """The network in an ONNX file, on the CPU; its answers carry no gradient.

    Nothing but the file's own bytes is read: weights in files beside it are refused, and so are operators of others.

    Args:
        graph: the file's bytes; one input of images (B, C, H, W) or (B, H, W, C) and one output of logits (B, K).
        threads: that onnxruntime may use, >= 1.

    Raises:
        UserError: a file that onnxruntime cannot run, or of other inputs and outputs.
    """

    sha256: Tensor

    def __init__(self, graph: bytes, threads: int = 1) -> None:
        super().__init__()
        self.graph, self.threads = graph, threads
        # A tensor, so that it is part of what names the network.
        digest = hashlib.sha256(graph).digest()
        self.register_buffer("sha256", torch.tensor(list(digest), dtype=torch.uint8))
        self._session = session_of(graph, threads)
        self.given, self.answer = _ends(self._session)
        self.last = _channels_last(self.given.shape)
        self.dtype = _TYPES[self.given.type]
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_session", "given", "answer")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A session is no copy's to share, and cannot be copied itself.
        self.__dict__.update(state)
        self._session = session_of(self.graph, self.threads)
        self.given, self.answer = _ends(self._session)

    @property
    def images(self) -> tuple[int | None, int | None]:
        """Channels and side of the images that the file takes; None where it takes any."""
        shape = [d if isinstance(d, int) else None for d in self.given.shape]
        return (shape[3], shape[1]) if self.last else (shape[1], shape[2])

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K), float32."""
        first = self.given.shape[0]
        out = in_parts(self._asked, x.detach().cpu(), first if isinstance(first, int) else None)
        return out.float().to(x.device)

    def _asked(self, x: Tensor) -> Tensor:
        given = (x.permute(0, 2, 3, 1) if self.last else x).to(self.dtype).contiguous().numpy()
        out = self._session.run([self.answer.name], {self.given.name: given})[0]
        return torch.from_numpy(out.copy())


@dataclass(frozen=True, kw_only=True)
class Onnx(Source):
    """Files of ONNX: attacked without gradients only."""

    key: ClassVar[str] = ".onnx"
    extra: ClassVar[str] = "onnx"
    example: ClassVar[str] = "net.onnx"

    def load(self, request: Request) -> Sourced:
        """See ``Source.load``."""
        path = Path(request.name)
        check_file(path, MOST_BYTES)
        if request.weights is not None:
            no_weights_here("an ONNX file")
        check_installed(("onnxruntime",), self.extra)
        network = OnnxAnswers(path.read_bytes(), torch.get_num_threads())
        channels, size = network.images
        notes = ["it answers and has no gradient: attacks without gradients only"]
        if network.last:
            notes.append("its images have their channels last: they are turned for it")
        shape = " x ".join("any" if v is None else str(v) for v in (channels, size, size))
        return Sourced(
            model=network,
            name=path.name,
            weights=path,
            preparation=Preparation(size=size, origin=f"an ONNX file for images {shape}"),
            black_box=True,
            notes=notes,
        )


def _ends(session: Any) -> tuple[Any, Any]:
    """The input of images and the output of logits."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise UserError(f"ONNX: expected one input of floating-point images (B, C, H, W), got {found}")
    logits = [o for o in outputs if len(o.shape) == 2] or (outputs if len(outputs) == 1 else [])
    if len(logits) != 1:
        found = ", ".join(f"{o.name} {o.shape}" for o in outputs)
        raise UserError(f"ONNX: expected one output of logits (B, K), got {found}")
    return inputs[0], logits[0]


def _channels_last(shape: list[Any]) -> bool:
    return shape[3] in (1, 3) and shape[1] not in (1, 3)
