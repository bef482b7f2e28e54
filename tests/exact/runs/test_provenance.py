"""What names a network and the code of a plug-in."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import FGSM
from defenses.robust.enresnet import Noise
from robustbench_sparse import __version__
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.runs.provenance import code_of, network_identity


def fresh(name: str) -> ModuleType:
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module(name)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(place: Path, name: str, text: str) -> None:
    (place / f"{name}.py").write_text(text)


# Code -----------------------------------------------------------------------------------------------------


def test_own_classes_are_named_by_the_version() -> None:
    assert code_of([FGSM(), FGSM]) == {"version": __version__}


def test_foreign_ones_by_their_source_and_what_it_imports(place: Path) -> None:
    write(place, "pro_helper", "STRENGTH = 1\n")
    write(place, "pro_base", "from attacks import FGSM\nclass Base(FGSM):\n    pass\n")
    write(
        place, "pro_own", "import json, pro_helper\nfrom pro_base import Base\nclass Own(Base):\n    pass\n"
    )
    write(place, "pro_other", "x = 1\n")
    seen = []
    for name, text in (
        ("pro_other", "x = 2\n"),  # nobody imports it
        ("pro_helper", "STRENGTH = 2\n"),
        ("pro_base", "from attacks import FGSM\nclass Base(FGSM):\n    weak = True\n"),
        (
            "pro_own",
            "import json, pro_helper\nfrom pro_base import Base\nclass Own(Base):\n    weak = False\n",
        ),
    ):
        for module in ("pro_helper", "pro_base", "pro_other"):
            fresh(module)
        seen.append(code_of([fresh("pro_own").Own]))
        write(place, name, text)
    for module in ("pro_helper", "pro_base"):
        fresh(module)
    seen.append(code_of([fresh("pro_own").Own]))
    assert list(seen[0]) == ["version", "pro_own:Own"]
    assert seen[0] == seen[1], "a file that nobody imports"
    assert len({s["pro_own:Own"] for s in seen[1:]}) == 4


def test_packages_with_relative_imports(place: Path) -> None:
    (place / "pro_pack").mkdir()
    write(place, "pro_pack/__init__", "")
    write(place, "pro_pack/part", "X = 1\n")
    write(
        place, "pro_pack/own", "from .part import X\nfrom attacks import FGSM\nclass Own(FGSM):\n    pass\n"
    )
    before = code_of([importlib.import_module("pro_pack.own").Own])
    write(place, "pro_pack/part", "X = 2\n")
    assert code_of([sys.modules["pro_pack.own"].Own]) != before


def test_a_class_without_a_file_is_named_by_its_code() -> None:
    def made(text: str) -> Any:
        space: dict[str, Any] = {"__name__": "no_such_module", "nn": nn}
        exec(text, space)
        return space["Net"]

    one = made("class Net(nn.Module):\n    def forward(self, x):\n        return x.flatten(1)\n")
    same = made("\n\nclass Net(nn.Module):\n    def forward(self, x):\n        return x.flatten(1)\n")
    other = made("class Net(nn.Module):\n    def forward(self, x):\n        return -x.flatten(1)\n")
    assert code_of([one]) == code_of([same])
    assert code_of([one]) != code_of([other])


def test_a_class_of_a_notebook_is_not_named_by_the_program_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    names = []
    for sign in ("", "-"):
        space: dict[str, Any] = {"__name__": "__main__", "nn": nn}
        exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {sign}x\n", space)
        names.append(code_of([space["Net"]])["__main__:Net"])
    assert names[0] != names[1]


# Networks -------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, sign: float = 1.0, noise: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.sign = nn.Linear(16, 3), sign
        self.noise = Noise(noise, "sample") if noise else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.sign * self.linear(self.noise(x).flatten(1))
        return out


def identity(net: nn.Module) -> str:
    return network_identity(net.eval(), 1, 4)


def test_the_same_network_has_the_same_identity() -> None:
    assert identity(Net()) == identity(Net())
    assert identity(Net(noise=0.5)) == identity(Net(noise=0.5)), "with noise of our layers"


def test_tensors_numbers_and_noise_belong_to_it() -> None:
    other = Net()
    with torch.no_grad():
        other.linear.bias[0] += 1e-7
    nets = [Net(), Net(sign=-1.0), Net(noise=0.5), Net(noise=0.6), other]
    assert len({identity(n) for n in nets}) == len(nets)


def test_threads_do_not() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 14 * 14, 10)).eval()
    before = torch.get_num_threads()
    found = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.add(network_identity(net, 1, 16))
    torch.set_num_threads(before)
    assert len(found) == 1


class Restless(Net):
    """Counts its queries, and answers by the count."""

    def forward(self, x: Tensor) -> Tensor:
        self.sign += 1.0
        return super().forward(x)


class Insists(Net):
    """Takes float32 only."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return super().forward(x)


def test_a_network_that_never_answers_alike_is_never_the_same() -> None:
    net = Restless()
    assert identity(net) != identity(net)
    assert net.sign == 1.0, "a copy was asked"


def test_a_network_that_insists_on_float32_gets_it() -> None:
    assert identity(Insists()) == identity(Insists())
    assert identity(Insists()) != identity(Insists(sign=-1.0))


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(0)])
def test_a_network_that_fails_is_a_line(error: BaseException) -> None:
    class Fails(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(UserError, match=f"does not take images of shape .*{type(error).__name__}"):
        identity(Fails())


def test_the_factory_belongs_to_it(place: Path) -> None:
    text = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))  # {note}\n"
    found = []
    for note in ("one", "two"):
        write(place, "pro_factory", text.format(note=note))
        factory = fresh("pro_factory").net
        torch.manual_seed(0)
        found.append(network_identity(factory().eval(), 1, 4, [factory]))
    assert found[0] != found[1]
