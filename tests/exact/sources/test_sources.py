"""What is read of others' settings: normalisations, sizes and crops, classes; and files that are refused."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.runs.targets import resolve_target
from robustbench_sparse.sources import FILES, SOURCES, find
from robustbench_sparse.sources.adapting import with_size
from robustbench_sparse.sources.classes import indices_of
from robustbench_sparse.sources.from_torchvision import TRANSFORMING, _preparation
from robustbench_sparse.sources.from_transformers import _read
from robustbench_sparse.sources.front import Chosen, fronted, in_parts, network_of
from robustbench_sparse.sources.preparation import Preparation, crop_of, normalisation_of, said_of


@pytest.mark.parametrize(
    ("mean", "std", "found"),
    [
        ("0.5", "0.25", ((0.5,), (0.25,))),
        ("0.1,0.2,0.3", "0.5", ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))),
        ("half", None, ((0.5,), (0.5,))),
        ("MNIST", "mnist", None),
        ("none", None, None),
        (None, "half", ((0.5,), (0.5,))),
    ],
)
def test_normalisations_by_number_and_name(mean: str | None, std: str | None, found: Any) -> None:
    if mean == "MNIST":
        with pytest.raises(UserError, match="one name for both"):
            normalisation_of(mean, std)
    else:
        assert normalisation_of(mean, std) == found


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ("0.5", None, "expected --std, too"),
        (None, "0.5", "expected --mean, too"),
        ("imagnet", None, "did you mean 'imagenet'"),
        ("123.7,116.3,103.5", "58.4,57.1,57.4", "divide by 255"),
        ("0.5", "0", "numbers > 0"),
        ("0.5,x", "0.5", "expected numbers with commas between"),
        ("0.1,0.2", "0.1,0.2,0.3", "as many numbers"),
        ("imagenet", "0.5", "one name for both, or numbers in both"),
    ],
)
def test_normalisations_that_cannot_be_meant(mean: str | None, std: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        normalisation_of(mean, std)


def test_a_normalisation_takes_the_place_of_the_sources() -> None:
    net = nn.Sequential(nn.Flatten())
    first = fronted(net, (0.5,), (0.5,))
    second = fronted(first, (0.0,), (0.25,))
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(first(x), (x.flatten(1) - 0.5) / 0.5)
    assert torch.equal(second(x), x.flatten(1) / 0.25)
    assert network_of(second) is net
    assert fronted(second, None, None) is net
    assert said_of((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) == "mean 0.5 0.5 0.5, std 0.5 0.5 0.5 [half]"


@pytest.mark.parametrize(
    ("size", "shorter"), [(224, 256), (224, 232), (224, 235), (299, 342), (480, 480), (7, 9)]
)
def test_a_crop_comes_to_the_same_number_of_pixels(size: int, shorter: int) -> None:
    share = crop_of(size, shorter)
    assert share is not None
    assert math.floor(size / share) == shorter


def test_torchvisions_own_settings() -> None:
    import torchvision

    entry = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    found = _preparation(entry)
    assert (found.size, found.crop, found.interpolation) == (224, crop_of(224, 232), "bilinear")
    assert found.mean == (0.485, 0.456, 0.406)
    assert set(TRANSFORMING) <= set(torchvision.models.list_models(module=torchvision.models))


@pytest.mark.parametrize(
    ("settings", "size", "crop", "interpolation"),
    [
        ({"size": {"height": 224, "width": 224}, "resample": 3}, 224, None, "bicubic"),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224}, "do_center_crop": True},
            224, 0.875, "bilinear",
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}, 224, 0.875, "bicubic"),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, 384, None, "bilinear"),
        ({"size": 224}, 224, None, "bilinear"),
        ({"size": {"height": 224, "width": 224}, "do_resize": False}, None, None, None),
    ],
)  # fmt: skip
def test_transformers_settings(
    settings: dict[str, Any], size: int | None, crop: float | None, interpolation: str | None
) -> None:
    found = _read({"image_mean": [0.5], "image_std": [0.25], **settings})
    assert (found.size, found.crop, found.interpolation) == (size, crop, interpolation)
    assert (found.mean, found.std) == ((0.5,), (0.25,))


def test_transformers_rescaling_is_part_of_the_normalisation() -> None:
    found = _read({"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 127.5})
    assert found.mean == pytest.approx((0.25,))  # (2 x - 0.5) / 0.5 of images in [0, 1]
    assert found.std == pytest.approx((0.25,))
    assert _read({"image_mean": [0.5], "image_std": [0.5], "do_normalize": False}).mean is None


def test_a_folder_of_images_is_brought_to_the_networks_size() -> None:
    made_for = Preparation(size=224, crop=0.875, interpolation="bicubic")
    wanted = {"size": 224, "crop": 0.875, "interpolation": "bicubic"}
    assert with_size("image_folder", made_for, []) == {"name": "image_folder", **wanted}
    assert with_size({"name": "image_folder", "size": 32}, made_for, []) == {
        "name": "image_folder",
        "size": 32,
    }
    assert with_size("image_folder", made_for, ["data.size=64"]) == "image_folder"
    assert with_size("mnist", made_for, []) == "mnist"
    assert with_size("image_folder", Preparation(), []) == "image_folder"


def test_classes_by_index_pair_and_name() -> None:
    names, labels = ("cat", "dog"), ("tench, Tinca", "Dog", "cat")
    assert indices_of("2, 1", names, labels) == [2, 1]
    assert indices_of("dog=1,cat=2", names, ()) == [2, 1]
    assert indices_of("folders", names, labels) == [2, 1]
    assert indices_of("folders", ("7", "tench"), labels) == [7, 0]
    assert Chosen([2, 0])(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[3.0, 1.0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1", "expected 2 indices"),
        ("1,1", "1 stands there twice"),
        ("cat=1", "no index for the class 'dog'"),
        ("cat=1,dgo=2", "no class 'dgo' .did you mean 'dog'"),
        ("cat=x,dog=1", "expected a whole number"),
        ("-1,2", "expected a whole number"),
        ("folders", "'cat' names no class"),
    ],
)
def test_classes_that_cannot_be_meant(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        indices_of(text, ("cat", "dog"), ("a", "b"))


def test_parts_of_a_fixed_size_give_the_same_answers() -> None:
    def only_four(x: Tensor) -> Tensor:
        assert len(x) == 4
        return x.sum(1, keepdim=True)

    x = torch.rand(10, 3, requires_grad=True)
    out = in_parts(only_four, x, 4)
    assert torch.equal(out, x.sum(1, keepdim=True))
    out.sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 1).all()), "the images that fill a part up have no gradient of it"


def test_what_is_no_sources_is_left_to_others(tmp_path: Path) -> None:
    assert find("results/quickstart/runs/x") is None
    assert find("zoo:mnist/lenet") is None
    assert find("mynets:net") is None
    assert set(SOURCES) == {"torchvision", "timm", "hf", "robustbench"}
    assert set(FILES) == {".onnx", ".pt2"}
    with pytest.raises(UserError, match="no such file"):
        find("none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"onnxruntime cannot run the file|not installed"):
        find(str(tmp_path / "bad.onnx"))
    (tmp_path / "bad.pt2").write_bytes(b"no network")
    with pytest.raises(UserError, match="say --trust-file"):
        find(str(tmp_path / "bad.pt2"))
    with pytest.raises(UserError, match="not a readable exported network"):
        find(str(tmp_path / "bad.pt2"), trusted=True)
    with pytest.raises(UserError, match="torchvision:NAME, timm:NAME, hf:NAME, robustbench:NAME"):
        resolve_target("nothing")


def test_a_torchvision_file_in_the_cache_is_what_its_name_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    (place / "resnet18-f37072fd.pth").write_bytes(b"another file")
    with pytest.raises(UserError, match="not those that its name promises"):
        find("torchvision:resnet18")


class WithFront(nn.Module):
    """As RobustBench's networks: the normalisation inside."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mu", torch.tensor(0.5))
        self.linear = nn.Linear(4, 2)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of RobustBench's shape, with one network and one ensemble."""
    zoo, enums = types.ModuleType("robustbench.model_zoo"), types.ModuleType("robustbench.model_zoo.enums")
    enums.BenchmarkDataset = lambda text: {"cifar10": "c"}[text]  # type: ignore[attr-defined]
    enums.ThreatModel = lambda text: {"Linf": "l"}[text]  # type: ignore[attr-defined]
    known = {
        "Some2020Net": {"model": WithFront, "gdrive_id": "x"},
        "Many": {"model": WithFront, "gdrive_id": ["x"]},
    }
    zoo.model_dicts = {"c": {"l": known}}  # type: ignore[attr-defined]
    for name, module in (
        ("", types.ModuleType("robustbench")),
        (".model_zoo", zoo),
        (".model_zoo.enums", enums),
    ):
        monkeypatch.setitem(sys.modules, f"robustbench{name}", module)


@pytest.mark.usefixtures("package")
def test_a_network_of_robustbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nothing is downloaded unasked"):
        find("robustbench:Some2020Net")
    weights = {f"module.{n}": w for n, w in nn.ModuleDict({"linear": nn.Linear(4, 2)}).state_dict().items()}
    place = tmp_path / "models/cifar10/Linf/Some2020Net.pt"
    place.parent.mkdir(parents=True)
    torch.save({"last": {"state_dict": weights}, "best": {}}, place)
    found = find("robustbench:Some2020Net")
    assert found is not None
    assert torch.equal(found.model.get_submodule("linear").weight, weights["module.linear.weight"])
    assert "its normalisation is that of the network's code, the file has none" in found.notes
    assert "the file's 'last'" in found.notes
    for name, said in (
        ("robustbench:Some2021Net", "did you mean 'Some2020Net'"),
        ("robustbench:Many", "in several files"),
        ("robustbench:cifar10/L3/Some2020Net", "Linf or L2"),
        ("robustbench:a/b", "expected NAME or DATASET/THREAT/NAME"),
    ):
        with pytest.raises(UserError, match=said):
            find(name)


def test_robustbench_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(UserError, match="RobustBench's own package"):
        find("robustbench:Some2020Net")


def test_a_folder_that_timm_has_written(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4, in_chans=1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    facts = {"architecture": "test_resnet", "num_classes": 4, "model_args": {"in_chans": 1}}
    preparing = {
        "mean": [0.4],
        "std": [0.3],
        "input_size": [1, 16, 16],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    (tmp_path / "config.json").write_text(json.dumps({**facts, "pretrained_cfg": preparing}))
    found = find(f"timm:{tmp_path}")
    assert found is not None
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(found.model(x), model.eval()((x - torch.tensor(0.4)) / torch.tensor(0.3)))
    assert (found.preparation.size, found.preparation.crop) == (16, 1.0)
    assert found.name == tmp_path.name
    with pytest.raises(UserError, match="has its own weights"):
        find(f"timm:{tmp_path}", tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="did you mean"):
        find("timm:resnet1888")
