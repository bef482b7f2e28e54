"""An ONNX file as a network of torch's: what the judge asks for verdicts, and attacks for gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustbench_sparse.foundation.errors import UserError, one_line


class OnnxNetwork(nn.Module):
    """The network in an ONNX file, on the CPU by onnxruntime; eval mode.

    Its answers are the file's, to the last bit. Numbers of 8 bits have no gradient; where one is asked for, it is that
    of a stand-in at the same images (BPDA, Athalye et al. 2018, https://arxiv.org/abs/1802.00420, section 4.1; with the
    float network as the stand-in, rounding is passed straight through).

    Args:
        graph: the file's bytes, with the input ``images`` (batch, C, H, W) and the output ``logits`` (batch, K).
        stand_in: a network of the same images and logits, in eval mode; None for a network without gradients.
        threads: that onnxruntime may use, >= 1.

    Raises:
        UserError: a file that onnxruntime cannot run.
    """

    stand_in: nn.Module | None

    def __init__(self, graph: bytes, stand_in: nn.Module | None = None, threads: int = 1) -> None:
        super().__init__()
        self.graph, self.threads = graph, threads
        self._session = session_of(graph, threads)
        # Not a submodule: its layers are no part of this network.
        self.__dict__["stand_in"] = stand_in
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A session is no copy's to share, and cannot be copied itself.
        self.__dict__.update(state)
        self._session = session_of(self.graph, self.threads)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> logits (B, K), float32."""
        given = x.detach().cpu().float().contiguous().numpy()
        out = torch.from_numpy(self._session.run(["logits"], {"images": given})[0].copy()).to(x.device)
        if self.stand_in is None or not (torch.is_grad_enabled() and x.requires_grad):
            return out
        instead: Tensor = _Instead.apply(self.stand_in(x), out)
        return instead


def session_of(graph: bytes, threads: int) -> Any:
    """onnxruntime's session of a file's bytes, on the CPU.

    Raises:
        UserError: a file that onnxruntime cannot run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it says of a file is raised, and told once
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # it raises what it likes
        elsewhere = any(word in str(e).lower() for word in ("external", "file_size"))
        hint = "; save it as one file" if elsewhere else ""
        raise UserError(f"onnxruntime cannot run the file: {one_line(e)[:200]}{hint}") from None


class _Instead(torch.autograd.Function):
    """The second argument's values with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, gradients: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
