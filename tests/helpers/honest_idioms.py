"""Twenty honest ways to write a network's forward pass, as third-party code does; each a small classifier of digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

WIDTH, CLASSES = 8, 10


class Plain(nn.Module):
    """Two convolutions on 8 x 8 pixels and a linear layer; what lies between is ``flat``'s to write."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1)
        self.fc = nn.Linear(2 * WIDTH * 16, CLASSES)

    def maps(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))

    def flat(self, x: Tensor) -> Tensor:
        return torch.flatten(x, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.flat(self.maps(x)))
        return out


class ViewSize(Plain):
    def flat(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


class ViewShape(Plain):
    def flat(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)


class ReshapeShape(Plain):
    def flat(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1)


class NumFlatFeatures(Plain):
    """As in a well-known tutorial: the number of features is counted in a loop."""

    def num_flat_features(self, x: Tensor) -> int:
        count = 1
        for size in x.size()[1:]:
            count *= size
        return count

    def flat(self, x: Tensor) -> Tensor:
        return x.view(-1, self.num_flat_features(x))


class Pooled(Plain):
    """Averages over the pixels before its last layer, by ``how``."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how, self.fc = how, nn.Linear(2 * WIDTH, CLASSES)

    def flat(self, x: Tensor) -> Tensor:
        return self.how(x)


class Skips(nn.Module):
    """Puts what came before beside what comes after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, WIDTH, 3, padding=1), nn.Conv2d(WIDTH + 1, WIDTH, 3, padding=1)
        self.fc = nn.Linear((2 * WIDTH + 1) * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.first(x))], 1)
        x = torch.cat([x, F.relu(self.second(x))], 1)
        out: Tensor = self.fc(F.max_pool2d(x, 2).flatten(1))
        return out


class InPlace(Plain):
    """Rectifies in place and adds the block's input."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.mid = nn.ReLU(inplace=True), nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1)

    def maps(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        out = self.mid(x)
        out += x
        activated: Tensor = self.relu(out)
        return activated


class InAList(nn.Module):
    """Stages in a plain list, registered by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = []
        for i, (before, after) in enumerate(((1, WIDTH), (WIDTH, 2 * WIDTH))):
            conv = nn.Conv2d(before, after, 3, stride=1 + i, padding=1)
            stage = nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())
            self.add_module(f"stage{i}", stage)
            self.stages.append(stage)
        self.head = nn.Linear(2 * WIDTH * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for name in [n for n, _ in self.named_children() if n.startswith("stage")]:
            x = getattr(self, name)(x)
        out: Tensor = self.head(x.flatten(start_dim=1))
        return out


class Listed(nn.Module):
    """A loop over an ``nn.ModuleList``."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 48, 32)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        out: Tensor = self.head(x)
        return out


class Functional(nn.Module):
    """No layers: parameters of its own and torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(0.3 * torch.randn(WIDTH, 1, 3, 3))
        self.bias = nn.Parameter(torch.zeros(WIDTH))
        self.weight = nn.Parameter(0.1 * torch.randn(CLASSES, WIDTH * 16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, self.bias, padding=1).clamp(min=0)
        return F.avg_pool2d(x, 2).flatten(1) @ self.weight.t()


class Tokens(nn.Module):
    """Attention over 16 patches of 2 x 2 pixels, written with ``einsum``, as in small vision transformers."""

    def __init__(self, heads: int = 2, width: int = 16) -> None:
        super().__init__()
        self.heads, self.embed = heads, nn.Linear(4, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1, self.norm2, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, CLASSES)

    def attend(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        share = (torch.einsum("bhid,bhjd->bhij", q, k) * (d // self.heads) ** -0.5).softmax(-1)
        mixed = torch.einsum("bhij,bhjd->bhid", share, v).transpose(1, 2).reshape(b, n, d)
        out: Tensor = self.out(mixed)
        return out

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 2, stride=2).transpose(1, 2)
        x = self.embed(patches)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        x = x + self.attend(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        out: Tensor = self.head(self.last(x)[:, 0])
        return out


class LogSoftmax(Plain):
    """Gives log-probabilities, as networks trained with ``nll_loss`` do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(super().forward(x), dim=1)


class Normalised(Plain):
    """Its mean and deviation are buffers, and it normalises by itself."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3]).view(1, 1, 1, 1))
        self.register_buffer("std", torch.tensor([0.35]).view(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / self.std)


class Dropped(Plain):
    def flat(self, x: Tensor) -> Tensor:
        return F.dropout(torch.flatten(x, 1), p=0.2, training=self.training)


class ChannelsLast(Plain):
    """Goes over to channels last and norms them there."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, 2 * WIDTH)

    def maps(self, x: Tensor) -> Tensor:
        x = super().maps(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        return F.gelu(self.mix(self.norm(x))).permute(0, 3, 1, 2).contiguous()


class Halves(Plain):
    """Channels in two halves, one of which gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH * 16, CLASSES)

    def maps(self, x: Tensor) -> Tensor:
        value, gate = self.conv2(F.relu(self.conv1(x))).chunk(2, dim=1)
        first, second = torch.split(value, WIDTH // 2, dim=1)
        return torch.cat([first, second], 1) * gate.sigmoid()


class BySize(Plain):
    """Looks at the image's size before it pools."""

    def maps(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 8:
            x = F.adaptive_avg_pool2d(x, 8)
        if x.dim() == 3:
            x = x.unsqueeze(0)
        return super().maps(x)


class WeightNormed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = parametrizations.weight_norm(self.conv1)
        self.fc = parametrizations.spectral_norm(self.fc)


class InStages(nn.Module):
    """Features and classifier apart, a squeeze between them, as in many a published network."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.SiLU(inplace=True))
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(16, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier(self.features(x))
        return F.adaptive_max_pool2d(x, (1, 1)).squeeze(-1).squeeze(-1)


IDIOMS: dict[str, Callable[[], nn.Module]] = {
    "view_size": ViewSize,
    "view_shape": ViewShape,
    "reshape_shape": ReshapeShape,
    "flatten": Plain,
    "num_flat_features": NumFlatFeatures,
    "mean_2_3": lambda: Pooled(lambda x: x.mean([2, 3])),
    "adaptive_avg_pool": lambda: Pooled(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2)),
    "cat_skips": Skips,
    "inplace_relu": InPlace,
    "sequentials_in_a_list": InAList,
    "module_list": Listed,
    "functional": Functional,
    "einsum_attention": Tokens,
    "log_softmax": LogSoftmax,
    "normalisation_inside": Normalised,
    "functional_dropout": Dropped,
    "channels_last": ChannelsLast,
    "chunk_and_split": Halves,
    "by_shape": BySize,
    "weight_norm": WeightNormed,
    "max_pool_and_squeeze": InStages,
}
