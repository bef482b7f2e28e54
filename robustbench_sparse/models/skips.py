"""Skip connections that are trained: layers that add multiples of earlier values to what they make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SkipLayer(nn.Module):
    """A layer whose output is x = f(...) + sum_k skip_k x^{i_k}.

    Args:
        sources: the numbers i_k of the earlier values.
        start: of the skip parameters.

    Attributes:
        sources: as given.
        skip: the parameters, (len(sources),); None where there is no source.
    """

    def __init__(self, sources: Sequence[int], start: float = 0.0) -> None:
        super().__init__()
        self.sources = list(sources)
        self.skip = nn.Parameter(torch.full((len(self.sources),), start)) if self.sources else None

    def with_skips(self, out: Tensor, xs: Sequence[Tensor]) -> Tensor:
        """``out`` and the skips of the earlier values ``xs``, all of one shape."""
        if self.skip is not None:
            # By number, since a traced pass cannot go through a tensor one by one.
            for k, i in enumerate(self.sources):
                out = torch.addcmul(out, xs[i], self.skip[k])
        return out

    def keep(self, sources: Sequence[int]) -> None:
        """Leave only the skips of these sources, in place.

        Raises:
            ValueError: it has no such source.
        """
        if not set(sources) <= set(self.sources) or len(set(sources)) < len(sources):
            raise ValueError(f"expected some of the sources {self.sources}, got {list(sources)}")
        places = [self.sources.index(i) for i in sources]
        self.sources = list(sources)
        if self.skip is not None:
            left = self.skip.detach()[places].clone()
            self.skip = nn.Parameter(left, requires_grad=self.skip.requires_grad) if places else None
