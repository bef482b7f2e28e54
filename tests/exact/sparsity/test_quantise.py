"""Numbers of 8 bits in an ONNX file, against the formulas; and that file as a network of torch's."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
import zlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from robustbench_sparse.foundation.errors import MissingExtra, UserError  # noqa: E402
from robustbench_sparse.models import MODELS  # noqa: E402
from robustbench_sparse.sparsity.quantise.int8_file import contents, quantised  # noqa: E402
from robustbench_sparse.sparsity.quantise.onnx_network import OnnxNetwork  # noqa: E402
from robustbench_sparse.sparsity.shrink.onnx_file import exported  # noqa: E402


def images(count: int, seed: int = 0, size: int = 8) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def linear() -> nn.Module:
    """One linear layer whose rows differ in size by powers of ten, a third of it zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
        with torch.no_grad():
            net[1].weight *= torch.tensor([1.0, 10, 100, 0.1, 1])[:, None]
            net[1].weight[:, ::3] = 0
    return net.eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return linear()


@pytest.fixture(scope="module")
def graph(net: nn.Module) -> bytes:
    return quantised(exported(net, images(4)), images(100, seed=1))


def tensors(graph: bytes) -> dict[str, Tensor]:
    return {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy())
        for t in onnx.load_from_string(graph).graph.initializer
    }


@dataclasses.dataclass
class Numbers:
    """What the file of the linear layer says: weights, bias, and scale and zero of what goes in and out."""

    w: Tensor
    s_w: Tensor
    zeros: Tensor
    bias: Tensor
    s_x: float
    z_x: int
    s_y: float
    z_y: int


@pytest.fixture(scope="module")
def numbers(graph: bytes) -> Numbers:
    found, nodes = tensors(graph), onnx.load_from_string(graph).graph.node
    (weight,) = (
        n.input
        for n in nodes
        if n.op_type == "DequantizeLinear" and found.get(n.input[0], torch.empty(0)).ndim == 2
    )
    (bias,) = (
        found[n.input[0]]
        for n in nodes
        if found.get(n.input[0] if n.input else "", torch.empty(0)).dtype == torch.int32
    )
    made = [n.input for n in nodes if n.op_type == "QuantizeLinear"]
    first, last = made[0], made[-1]
    return Numbers(
        *(found[name] for name in weight),
        bias,
        float(found[first[1]]),
        int(found[first[2]]),
        float(found[last[1]]),
        int(found[last[2]]),
    )


def test_every_row_of_weights_has_its_own_scale_and_zeros_stay_zero(net: Any, numbers: Numbers) -> None:
    w = net[1].weight.detach()
    scale = w.abs().amax(1) / 127
    assert numbers.s_w == pytest.approx(scale.numpy(), rel=1e-6)
    assert not numbers.zeros.any()
    assert numbers.w.dtype == torch.int8
    assert torch.equal(numbers.w.int(), torch.round(w / numbers.s_w[:, None]).int())
    assert not numbers.w[:, ::3].any()
    back = numbers.w.float() * numbers.s_w[:, None]
    assert ((back - w).abs() <= scale[:, None] * 0.5001).all()


def test_an_activation_has_one_scale_from_smallest_to_largest_value_seen(net: Any, numbers: Numbers) -> None:
    x = images(100, seed=1)
    assert numbers.s_x == pytest.approx(float(x.max()) / 255, rel=1e-5)
    assert numbers.z_x == 0
    out = net(x).detach()
    low, high = float(out.min().clamp(max=0)), float(out.max().clamp(min=0))
    assert numbers.s_y == pytest.approx((high - low) / 255, rel=1e-3)
    assert numbers.z_y == round(-low / numbers.s_y)


def test_the_file_computes_what_its_numbers_say(graph: bytes, numbers: Numbers) -> None:
    """By hand in whole numbers: sum of (q_x - z_x) q_w plus the bias, rescaled and rounded."""
    x = images(32, seed=2)
    q = torch.round(x.flatten(1) / numbers.s_x).clamp(0, 255).double() - numbers.z_x
    whole = q @ numbers.w.double().T + numbers.bias.double()
    y = whole * numbers.s_x * numbers.s_w.double() / numbers.s_y + numbers.z_y
    expected = (torch.round(y).clamp(0, 255) - numbers.z_y) * numbers.s_y
    off = (OnnxNetwork(graph)(x).double() - expected).abs() / numbers.s_y
    # What falls between two numbers of 8 bits may be rounded either way.
    assert float(off.max()) < 1.01
    assert float((off > 0.01).double().mean()) < 0.02


def test_what_is_in_the_file_is_counted(net: Any, graph: bytes) -> None:
    plain, small = contents(exported(net, images(4))), contents(graph)
    assert plain["bytes"] > plain["float"] == 4 * (5 * 64 + 5)
    assert plain["int8"] == plain["int32"] == 0
    assert small["int8"] == 5 * 64 + 5  # weights, and the rows' zero points
    assert small["bytes"] == len(graph) > small["packed"] == len(zlib.compress(graph, 9))


def test_values_are_the_files_and_gradients_the_stand_ins(net: Any, graph: bytes) -> None:
    network, x = OnnxNetwork(graph, net), images(6, seed=3).requires_grad_(True)
    values = OnnxNetwork(graph)(x)
    assert not values.requires_grad
    out = network(x)
    assert torch.equal(out, values)
    assert not torch.equal(out, net(x))
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    (got,) = torch.autograd.grad((out * towards).sum(), x)
    (wanted,) = torch.autograd.grad((net(x) * towards).sum(), x)
    assert torch.equal(got, wanted)
    with torch.no_grad():
        assert not network(x).requires_grad
    assert not list(network.parameters())


def test_an_image_has_the_same_answer_alone_and_among_others(graph: bytes) -> None:
    network, x = OnnxNetwork(graph), images(9, seed=4)
    assert torch.equal(network(x), torch.cat([network(one) for one in x.split(1)]))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies_answer_alike(graph: bytes, again: Any) -> None:
    network = OnnxNetwork(graph)
    assert torch.equal(again(network)(images(5)), network(images(5)))


@pytest.mark.parametrize(
    ("entry", "settings"),
    [("preact_resnet", {"depth": 8, "widths": (4, 4, 4)}), ("convnet", {}), ("resnet18", {"width": 2})],
)
def test_networks_of_the_suite_stay_nearly_the_same(entry: str, settings: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[entry](**settings).build(1, 16, 10).train()
        for seed in range(5):  # batch-norm's statistics
            model(images(64, seed, size=16))
    model.eval()
    x = images(64, seed=9, size=16)
    small = OnnxNetwork(quantised(exported(model, x), images(128, seed=1, size=16)))
    with torch.no_grad():
        wanted = model(x)
    assert float((small(x) - wanted).norm() / wanted.norm()) < 0.1
    assert not torch.equal(small(x), wanted)


def test_what_cannot_be_read_is_refused_in_one_line() -> None:
    for problem, call in (
        ("onnxruntime cannot run the file", lambda: OnnxNetwork(b"no graph")),
        ("onnxruntime cannot quantise this network", lambda: quantised(b"no graph", images(4))),
    ):
        with pytest.raises(UserError, match=problem) as e:
            call()
        assert "\n" not in str(e.value)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"^onnxscript is not installed: pip install '.*\[quantise\]'$"):
        quantised(b"", images(1))
