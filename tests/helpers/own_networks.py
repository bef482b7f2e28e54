"""Networks as others have them, made in a second: random layers, and a last one fitted by ridge regression."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

SIDE, TRAINING, TESTED = 32, 400, 100


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The embedded digits: images in [0, 1], (1797, 1, 8, 8), and labels."""
    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)


@cache
def coloured() -> tuple[Tensor, Tensor]:
    """Digits of ``SIDE`` pixels in three unlike channels, whole bytes of [0, 1], shuffled; (500, 3, 32, 32), labels."""
    x, y = digits()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[: TRAINING + TESTED]
    x, y = x[order], y[order]
    large = nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear")
    tint = torch.tensor([1.0, 0.6, 0.25]).view(1, 3, 1, 1)
    ground = torch.tensor([0.0, 0.1, 0.45]).view(1, 3, 1, 1)
    return ((ground + (tint - ground) * large) * 255).round() / 255, y


def folder(path: Path) -> Path:
    """``coloured``'s last images as ``<class>/*.png``."""
    x, y = (part[TRAINING:] for part in coloured())
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        file = path / str(int(label)) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(out, "PNG")
        file.write_bytes(out.getvalue())
    return path


def head_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and layer of the last linear layer."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]


@torch.no_grad()
def fit_head(model: nn.Module, x: Tensor, y: Tensor, strength: float = 1e-2) -> nn.Module:
    """Fit a network's last linear layer to images and labels, in place, by least squares; eval mode."""
    model.eval()
    _, head = head_of(model)
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
    for part in x.split(100):
        model(part)
    handle.remove()
    features = torch.cat(seen).double()
    mean, spread = features.mean(0), features.std(0).clamp_min(1e-6)
    z = (features - mean) / spread
    targets = nn.functional.one_hot(y, head.weight.shape[0]).double()
    solved = torch.linalg.solve(
        z.T @ z + strength * len(z) * torch.eye(z.shape[1], dtype=torch.double),
        z.T @ (targets - targets.mean(0)),
    )
    weight = (solved / spread[:, None]).T * 10
    head.weight.copy_(weight)
    head.bias.copy_(10 * targets.mean(0) - weight @ mean)
    return model


def small_cnn(channels: int = 1, width: int = 24) -> nn.Sequential:
    """Convolution, pooling, one linear layer of 10 classes; takes images of 8 x 8 and more."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, 10),
    )


@cache
def trained_state() -> dict[str, Tensor]:
    """``small_cnn``'s weights, fitted to digits."""
    x, y = digits()
    return {n: w.clone() for n, w in fit_head(small_cnn(), x[:900], y[:900]).state_dict().items()}


def trained() -> nn.Sequential:
    """``small_cnn`` fitted to digits; eval mode."""
    model = small_cnn()
    model.load_state_dict(trained_state())
    model.eval()
    return model


def onnx_of(model: nn.Sequential) -> bytes:
    """``small_cnn`` for images of 8 x 8 pixels as an ONNX file."""
    from onnx import TensorProto, helper, numpy_helper

    state = {name: w.numpy() for name, w in model.state_dict().items()}
    nodes = [
        helper.make_node("Conv", ["images", "0.weight", "0.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "4.weight", "4.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(w, name) for name, w in state.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = made.SerializeToString()
    return data


def factory() -> nn.Module:
    """As a user's own module has it: the architecture alone."""
    return small_cnn()
