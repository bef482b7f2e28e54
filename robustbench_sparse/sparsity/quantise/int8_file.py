"""From an ONNX file in float32 to one in int8, by onnxruntime's own tools.

Weights: one scale per output channel, symmetric about 0, so that a zero stays a zero. Activations: one scale and one
zero point per tensor, from the smallest and the largest value seen on images of calibration. Both are rounded to 8 bits
and multiplied as such (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, sections 2.1 and 3).

torch's own tools (``torch.ao.quantization``) are about to be removed from torch, which points to another package in
their place; onnxruntime's are maintained and write a file that others can run.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.sparsity.shrink import onnx_file

EXTRA = "quantise"  # whose packages are needed
BATCH = 64  # images of calibration looked at together; changes no result


def check_installed() -> None:
    """Raise MissingExtra where a package that quantising needs is not there."""
    onnx_file.check_installed(EXTRA)


def quantised(graph: bytes, images: Tensor) -> bytes:
    """A network in int8.

    Args:
        graph: an ONNX file with the input ``images`` (batch, C, H, W), float32.
        images: what activations are calibrated on, (B, C, H, W) in [0, 1], on the CPU.

    Returns:
        The bytes of the ONNX file: images in and logits out are float32, and all that convolutions and linear layers
        read and write between them is int8.

    Raises:
        MissingExtra: see ``check_installed``.
        UserError: a network that onnxruntime cannot quantise.
    """
    check_installed()
    from onnxruntime import quantization as tools

    class Images(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._parts = iter(torch.split(images, BATCH))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self._parts, None)
            return None if part is None else {"images": part.contiguous().numpy()}

    with tempfile.TemporaryDirectory() as scratch:
        given, prepared, made = (Path(scratch) / f"{name}.onnx" for name in ("float", "prepared", "int8"))
        given.write_bytes(graph)
        try:
            with _quiet():
                tools.quant_pre_process(given, prepared, skip_symbolic_shape=True)
                tools.quantize_static(
                    prepared,
                    made,
                    Images(),
                    quant_format=tools.QuantFormat.QDQ,
                    per_channel=True,
                    weight_type=tools.QuantType.QInt8,
                    activation_type=tools.QuantType.QUInt8,
                    calibrate_method=tools.CalibrationMethod.MinMax,
                )
        except Exception as e:  # the tools raise what they like
            raise UserError(f"onnxruntime cannot quantise this network: {one_line(e)[:200]}") from None
        return made.read_bytes()


def contents(graph: bytes) -> dict[str, int]:
    """Of an ONNX file: its bytes, those of its tensors by ``int8``, ``int32`` and ``float``, and its bytes packed.

    ``packed`` is the file's size under zlib's best compression, which is where zeros save bytes.
    """
    import onnx

    counts = {"bytes": len(graph), "int8": 0, "int32": 0, "float": 0}
    kinds = {onnx.TensorProto.INT8: "int8", onnx.TensorProto.INT32: "int32", onnx.TensorProto.FLOAT: "float"}
    for tensor in onnx.load_from_string(graph).graph.initializer:
        if tensor.data_type in kinds:
            counts[kinds[tensor.data_type]] += onnx.numpy_helper.to_array(tensor).nbytes
    return {**counts, "packed": len(zlib.compress(graph, 9))}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tools from writing to the terminal; errors still come as such."""
    before, said = logging.root.manager.disable, io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            logging.disable(logging.ERROR)
            yield
    finally:
        logging.disable(before)
