"""Seven networks as people have them, each evaluated in one command."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tests.helpers.commands import call, one_line
from tests.helpers.own_networks import (
    TRAINING,
    coloured,
    digits,
    fit_head,
    folder,
    onnx_of,
    small_cnn,
    trained,
)

ATTACKS = ["--attacks", "fgsm", "--eps", "0.02", "--limit", "80"]
FACTORY = "tests.helpers.own_networks:factory"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("own") / "images")


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache of this machine counts, and nothing may be fetched."""
    monkeypatch.setenv("RBS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def row_of(*words: object, attacks: list[str] = ATTACKS) -> tuple[dict[str, str], str]:
    """The row that ``evaluate`` prints, and what it says beside it."""
    done = call("evaluate", *words, *attacks, "--format", "csv")
    assert done.exit_code == 0, done.output
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert row["status"] == "ok"
    assert float(row["worst"]) <= float(row["clean"])
    return row, done.stderr


def of_folder(images: Path, side: int = 32) -> list[object]:
    return ["--dataset", "image_folder", "--set", f"data.path={images}", "--set", f"data.size={side}"]


def test_torchvision(images: Path, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=10)
    x, y = coloured()
    fit_head(model, x[:TRAINING], y[:TRAINING])
    torch.save({"state_dict": {f"module.{n}": w for n, w in model.state_dict().items()}}, tmp_path / "s.pth")
    row, said = row_of(
        "--model", "torchvision:shufflenet_v2_x0_5", "--weights", tmp_path / "s.pth", *of_folder(images)
    )
    assert float(row["clean"]) > 50
    assert "taken from state_dict in the file" in said
    assert "module. taken off the names" in said
    assert "10 classes, as the file has" in said
    assert "no normalisation in front" in said
    assert row["flags"] == ""
    message = one_line(call("evaluate", "torchvision:shufflenet_v2_x0_5", "--dataset", "digits"))
    assert "nothing is downloaded unasked" in message
    assert "--weights" in message
    assert "did you mean 'resnet18'" in one_line(
        call("evaluate", "torchvision:resnet81", "--dataset", "digits")
    )


def test_timm(images: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    x, y = coloured()
    fit_head(nn.Sequential(_Half(), model), x[:TRAINING], y[:TRAINING])
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    row, said = row_of("timm:test_resnet", "--weights", tmp_path / "t.safetensors", *of_folder(images))
    assert float(row["clean"]) > 50
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5 [half]" in said
    assert "images of 160 x 160 pixels, bilinear, crop 0.95" in said
    assert row["flags"] == "gate:size"
    assert "made for 160 x 160 pixels, and given 32 x 32" in said
    assert "nothing is downloaded unasked" in one_line(
        call("evaluate", "timm:test_resnet", "--dataset", "digits")
    )


class _Half(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5) / 0.5


def test_hugging_face(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=8, patch_size=4,
        num_channels=1, num_labels=10,
    )  # fmt: skip
    network = transformers.ViTForImageClassification(config)
    x, y = digits()
    fit_head(_Answers(network), (x[:900] - 0.3) / 0.4, y[:900], 1e-3)
    place = tmp_path / "vit"
    network.save_pretrained(place)
    preparing = (
        '{"do_normalize": true, "image_mean": [0.3], "image_std": [0.4], "size": {"height": 8, "width": 8}}'
    )
    (place / "preprocessor_config.json").write_text(preparing)
    row, said = row_of(f"hf:{place}", "--dataset", "digits")
    assert float(row["clean"]) > 50
    assert "mean 0.3, std 0.4, images of 8 x 8 pixels, bilinear (as preprocessor_config.json says)" in said
    assert "its .logits are what is attacked" in said
    assert row["flags"] == ""
    bare, _ = row_of(f"hf:{place}", "--dataset", "digits", "--mean", "none", "--expect-clean", "0")
    assert bare["clean"] != row["clean"]
    assert bare["model"] == "vit(mean=none)"
    assert "nothing is downloaded unasked" in one_line(call("evaluate", "hf:a/b", "--dataset", "digits"))


class _Answers(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> Any:
        return self.network(x).logits


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_of(trained()))
    out = tmp_path / "out"
    square = ["--attacks", "square", "--eps", "0.1", "--limit", "16", "--out", str(out)]
    row, said = row_of(path, "--dataset", "digits", attacks=square)
    assert float(row["clean"]) > 80
    assert "attacks without gradients only" in said
    assert "gate: gradients     skipped" in said
    assert row["protocol"].startswith("black-box-custom-")
    call("evaluate", FACTORY, "--weights", _saved(tmp_path), "--dataset", "digits", *square)
    table = list(csv.DictReader(io.StringIO(call("leaderboard", out, "--format", "csv").stdout)))
    assert [r["run"] for r in table] == ["net.onnx", "factory"]
    assert table[0]["clean"] == table[1]["clean"]
    assert [r["rank"] for r in table] == ["1", "1"], "each is alone in its protocol"
    assert len({r["protocol"] for r in table}) == 2
    runs = [str(out / "runs" / r["run_id"]) for r in table]
    assert "different protocols (black-box-custom-" in " ".join(call("compare", *runs).output.split())
    assert "enough for evaluate and nothing else" in one_line(call("sparsity", path))
    message = one_line(call("evaluate", path, "--dataset", "digits", "--attacks", "pgd"))
    assert message.startswith("attacks: pgd needs a gradient, and this network only answers")
    assert "square" in message
    assert (
        "square500" in call("evaluate", path, "--dataset", "digits", "--limit", "8").stdout
    )  # of the suite standard
    assert "expected off" in one_line(
        call("evaluate", path, "--dataset", "digits", "--attacks", "square", "--certificate", "quick")
    )


def _saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved.pt"
    torch.save(trained().state_dict(), path)
    return path


def test_a_third_partys_weights(tmp_path: Path) -> None:
    weights = {f"module._orig_mod.{n}": w for n, w in trained().state_dict().items()}
    torch.save({"epoch": 3, "model": weights, "optimizer": {"state": {}}}, tmp_path / "net.pt")
    row, said = row_of(FACTORY, "--weights", tmp_path / "net.pt", "--dataset", "digits")
    assert float(row["clean"]) > 80
    assert "taken from model in the file" in said
    assert "_orig_mod. taken out of the names" in said
    assert "module. taken off the names" in said


def test_pruned(tmp_path: Path) -> None:
    model = small_cnn()
    model.load_state_dict(trained().state_dict())
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.l1_unstructured(model[4], "weight", 0.25)
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    total = sum(int(m.weight.numel()) for m in (model[0], model[4]))
    zeros = sum(int((m.weight == 0).sum()) for m in (model[0], model[4]))
    row, said = row_of(
        FACTORY, "--weights", tmp_path / "pruned.pt", "--dataset", "digits", "--expect-clean", "0"
    )
    assert float(row["weight_sparsity"]) == pytest.approx(100 * zeros / total, abs=1e-3)
    assert "pruning masks folded into 2 weights" in said
    assert row["flags"] == ""


def test_ours(tmp_path: Path) -> None:
    row, said = row_of(FACTORY, "--weights", _saved(tmp_path), "--dataset", "digits", "--no-gate")
    assert row["flags"] == "gate:off"
    assert "gate:" not in said
    row, said = row_of(FACTORY, "--weights", _saved(tmp_path), "--dataset", "digits")
    assert row["flags"] == ""
    assert said.count("gate: ") == 10


def test_an_exported_network_is_read_only_where_its_maker_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(trained(), (torch.rand(4, 1, 8, 8),)), path)
    assert "say --trust-file" in one_line(call("evaluate", path, "--dataset", "digits"))
    row, said = row_of(path, "--trust-file", "--dataset", "digits")
    known, _ = row_of(FACTORY, "--weights", _saved(tmp_path), "--dataset", "digits")
    assert (row["clean"], row["fgsm"]) == (known["clean"], known["fgsm"])
    assert "exported for 4 images at a time" in said


def test_classes_of_a_larger_network(tmp_path: Path) -> None:
    order = [3, 1, 7, 0, 9, 12, 5, 8, 4, 10]
    model = trained()
    larger = nn.Linear(model[4].in_features, 13)
    with torch.no_grad():
        larger.weight[order], larger.bias[order] = model[4].weight, model[4].bias
    model[4] = larger
    torch.save(model.state_dict(), tmp_path / "larger.pt")
    words = [
        "tests.pipeline.test_own_networks:larger",
        "--weights",
        tmp_path / "larger.pt",
        "--dataset",
        "digits",
    ]
    assert "--classes says which" in one_line(call("evaluate", *words, *ATTACKS))
    row, said = row_of(*words, "--classes", ",".join(map(str, order)))
    known, _ = row_of(FACTORY, "--weights", _saved(tmp_path), "--dataset", "digits")
    assert row["clean"] == known["clean"]
    assert row["model"] == "larger(classes=10)"
    assert "10 of its logits are looked at" in said
    named = ",".join(f"{name}={i}" for name, i in enumerate(order))
    assert row_of(*words, "--classes", named)[0]["fgsm"] == row["fgsm"]
    assert "twice" in one_line(call("evaluate", *words, "--classes", "0,0,1,2,3,4,5,6,7,8"))


def larger() -> nn.Module:
    """Three classes more than digits have."""
    model = small_cnn()
    model[4] = nn.Linear(model[4].in_features, 13)
    return model


def test_the_target_is_named_once() -> None:
    assert "got both" in one_line(call("evaluate", "m:f", "--model", "m:f"))
    assert "got none" in one_line(call("evaluate", "--dataset", "digits"))
