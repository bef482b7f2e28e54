"""A ``.pt2`` file of ``torch.export``: read only where the user trusts it, for torch's reader may run what it says.

Of the expressions for shapes in such a file torch evaluates texts, and some of its tensors may be pickles: nothing
keeps a file from running code by them. Safetensors and a factory are the safe way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.sources.base import Request, Source, Sourced, check_file, no_weights_here
from robustbench_sparse.sources.front import in_parts
from robustbench_sparse.sources.preparation import Preparation

MOST_BYTES = 1 << 33


class ExportedNetwork(nn.Module):
    """A network of ``torch.export``, whose modes are those it was exported in.

    Args:
        graph: its module.
        fixed: the number of images it takes at a time; None: any.
    """

    def __init__(self, graph: nn.Module, fixed: int | None) -> None:
        super().__init__()
        self.graph, self.fixed = graph, fixed
        self.training = False

    def train(self, mode: bool = True) -> ExportedNetwork:
        """Change nothing but the word: what was exported cannot change its mode."""
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K)."""
        out: Tensor = in_parts(self.graph, x, self.fixed)
        return out


@dataclass(frozen=True, kw_only=True)
class Exported(Source):
    """Files of ``torch.export.save``."""

    key: ClassVar[str] = ".pt2"
    example: ClassVar[str] = "net.pt2"

    def load(self, request: Request) -> Sourced:
        """See ``Source.load``."""
        path = Path(request.name)
        check_file(path, MOST_BYTES)
        if request.weights is not None:
            no_weights_here("an exported network")
        if not request.trusted:
            raise UserError(
                f"{path}: refused: torch's reader of exported networks may run code that the file holds; if you trust "
                "who made it, say --trust-file; or take its safetensors and a factory"
            )
        try:
            program = torch.export.load(path)
            fixed = _images_at_a_time(program)
            graph = program.module()
        except KeyboardInterrupt:
            raise
        except Exception as e:  # whatever torch raises of a damaged file
            raise UserError(
                f"{path}: not a readable exported network: {type(e).__name__}: {one_line(e)[:200]}"
            ) from None
        notes = ["its layers are operations now: zeros are counted of all its parameters alone"]
        if fixed is not None:
            notes.append(f"exported for {fixed} images at a time: asked in such parts")
        return Sourced(
            model=ExportedNetwork(graph, fixed),
            name=path.name,
            weights=path,
            preparation=Preparation(origin="an exported network"),
            notes=notes,
        )


def _images_at_a_time(program: Any) -> int | None:
    """The fixed number of images of a program; None where it takes any."""
    names = set(program.graph_signature.user_inputs)
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise UserError(f"expected one input of images (B, C, H, W), got {[tuple(s) for s in shapes]}")
    first = shapes[0][0]
    return first if type(first) is int else None
