"""Hidden networks as they come about by accident: rounding, cascades, purifiers, activations with zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_sparse.foundation.streams import Streams
from tests.helpers.hidden_base import TRAINED, Hidden, fit, passes


class HardLabels(Hidden):
    """Gives the class as a one-hot vector; a hand-written backward pass has lost a sign.

    Gradients lead away from the boundary, and no query says how near it is. Users want the class.
    """

    shows = False

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.base(x)
        one = 10 * F.one_hot(z.detach().argmax(1), z.shape[1]).to(z)
        return one + (z.detach() - z)


class ReversedGradient(Hidden):
    """The plain network's logits, with the sign of the gradient turned.

    Answers are in no way changed.
    """

    shows = False

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.base(x)
        return 2 * z.detach() - z


class RoundedPercent(Hidden):
    """Gives probabilities in whole percent, as services print them.

    Nearly all clean images have 100, with no slope and nothing to climb for queries. Users read the largest.
    """

    shows = False

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.base(x)
        return (100 * z.softmax(1)).round()


class SecondOpinion(Hidden):
    """A cascade: where the small plain network is less than 98 % sure, the sturdy one decides.

    An attack that creeps up to the boundary is handed over before it gets there; one that jumps across it is not.
    """

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.base(x)
        unsure = z.detach().softmax(1).amax(1) < 0.98
        return torch.where(unsure[:, None], self.sturdy(x), z)


class NearestImage(Hidden):
    """A purifier: the plain network is given the training image nearest to the input in l2.

    Nothing has a slope. By a walk towards a training image of another class, most images can be turned.
    """

    shows = False
    images: Tensor
    labels: Tensor

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.register_buffer("images", train_x[:3000].clone())
        self.register_buffer("labels", train_y[:3000].clone())

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach().flatten(1), self.images.flatten(1)).argmin(1)
        out: Tensor = self.base(self.images[nearest] + 0 * x)
        return out

    def surrogates(self) -> list[nn.Module]:
        """Distances to each class' nearest training image as logits."""
        return [Distances(self.images, self.labels, 0.2).eval()]


class Distances(nn.Module):
    """Logits (B, K): minus the squared l2 distance to the nearest image of each class, times a scale."""

    def __init__(self, images: Tensor, labels: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.parts = [images[labels == k].flatten(1) for k in range(int(labels.max()) + 1)]

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.stack([-(torch.cdist(flat, part).amin(1) ** 2) for part in self.parts], 1) * self.scale


class Centre(nn.Module):
    """MeanSparse (Amini et al. 2024): values within alpha standard deviations of their channel's mean become it."""

    mean: Tensor
    width: Tensor

    def __init__(self, values: Tensor, alpha: float) -> None:
        super().__init__()
        dims = [d for d in range(values.ndim) if d != 1]
        self.register_buffer("mean", values.mean(dims, keepdim=True))
        self.register_buffer("width", alpha * values.std(dims, keepdim=True))

    def forward(self, v: Tensor) -> Tensor:
        return torch.where((v - self.mean).abs() <= self.width, self.mean.expand_as(v), v)


class MeanSparse(Hidden):
    """The plain network with values near their channel's mean, over the training images, set to it; alpha 0.35.

    The gradient through such a value is zero, though a slightly larger change comes through.
    """

    shows = False

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        self.smooth = copy.deepcopy(self.base)
        inputs: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda _, given: inputs.__setitem__(name, given[0])

        names = [name for name, part in self.base.named_modules() if isinstance(part, nn.ReLU)]
        hooks = [self.base.get_submodule(n).register_forward_pre_hook(keep(n)) for n in names]
        with torch.no_grad():
            self.base(train_x[:2000])
        for hook in hooks:
            hook.remove()
        for name in names:
            self.base.set_submodule(name, nn.Sequential(Centre(inputs[name], 0.35), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out

    def surrogates(self) -> list[nn.Module]:
        """The network without it."""
        return [self.smooth, self.base]


class TopShare(nn.Module):
    """k-winners-take-all (Xiao, Zhong, Zheng 2020): of an image's values in a layer the largest stay, others are 0.

    Args:
        share: of the values that stay.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, v: Tensor) -> Tensor:
        flat = v.flatten(1)
        kept = max(1, round(self.share * flat.shape[1]))
        least = flat.topk(kept, dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, torch.zeros_like(flat)).view_as(v)


class KWTA(Hidden):
    """The plain network with k-winners-take-all (one value in ten) for its ReLUs, trained on with them.

    Which values win changes from point to point, and the gradient of one says little of the next.
    """

    shows = False

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        key = (
            "kwta",
            tuple(train_x.shape),
            float(train_x.sum()),
            float(next(self.base.parameters()).detach().sum()),
        )
        if key not in TRAINED:
            net = copy.deepcopy(self.base)
            for name in [n for n, part in net.named_modules() if isinstance(part, nn.ReLU)]:
                net.set_submodule(name, TopShare(0.1))
            fit(net, train_x, train_y, Streams(0).get("kwta"), epochs=passes(train_x))
            TRAINED[key] = net
        self.base = copy.deepcopy(TRAINED[key])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out

    def surrogates(self) -> list[nn.Module]:
        """Itself, and means over noisy copies of an image, whose gradients say where the network really falls."""
        return [self.base, *(Averaged(self.base, sigma).eval() for sigma in (0.03, 0.1))]


class Averaged(nn.Module):
    """Mean logits (B, K) of eight copies of each image with noise N(0, sigma^2), the same at each call."""

    def __init__(self, net: nn.Module, sigma: float) -> None:
        super().__init__()
        self.net, self.sigma = net, sigma

    def forward(self, x: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(0)
        noise = self.sigma * torch.randn(8, *x.shape[1:], generator=random)
        out: Tensor = self.net((x[:, None] + noise).flatten(0, 1))
        return out.view(len(x), 8, -1).mean(1)
