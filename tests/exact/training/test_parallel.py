"""What parts of a minibatch draw and add up, and trainings that several processes cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from defenses.base import Defense
from defenses.robust.draws import BatchRandom
from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.augment import Augment
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.training.parallel import Ranks, span
from robustbench_sparse.training.preflight import check_runs
from tests.helpers.small import small


@dataclass
class Fixed:
    """A part as it is known to defenses."""

    first: int
    count: int
    of: int

    def total(self, tensors: Any) -> Any:
        return tensors

    def whole(self, values: Tensor) -> Tensor:
        return values


@dataclass(frozen=True, kw_only=True)
class Foreign(Defense):
    """Says nothing of parts."""


@dataclass(frozen=True, kw_only=True)
class Divides(Defense):
    """Says that it can work on them."""

    @property
    def divides(self) -> bool:
        return True


def parts(of: int, count: int) -> list[Fixed]:
    return [Fixed(*span(of, count, number), of) for number in range(count)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_parts_cover_a_minibatch_in_order() -> None:
    assert [span(7, 3, n) for n in range(3)] == [(0, 3), (3, 2), (5, 2)]
    assert [span(2, 2, n) for n in range(2)] == [(0, 1), (1, 1)]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_parts_draw_what_the_whole_minibatch_would(draw: str, memory: torch.memory_format) -> None:
    x = torch.zeros(7, 3, 5, 5).contiguous(memory_format=memory)
    whole = getattr(BatchRandom(generator(), 7), draw)(x)
    mine = [
        getattr(BatchRandom(generator(), p.count, p), draw)(x[p.first : p.first + p.count])
        for p in parts(7, 3)
    ]
    assert torch.equal(torch.cat(mine), whole)
    assert mine[0].stride() == whole[:3].stride()


def test_parts_leave_their_stream_where_the_whole_does() -> None:
    states = []
    for part in (None, *parts(7, 3)):
        stream = generator()
        random = BatchRandom(stream, 7 if part is None else part.count, part)
        random.integers(10), random.counters(len(random)), random.normal(torch.zeros(len(random), 3))
        states.append(stream.get_state().tolist())
    assert all(state == states[0] for state in states)


def test_parts_have_their_own_integers_and_counters() -> None:
    whole = BatchRandom(generator(), 7)
    numbers, (keys, places) = whole.integers(1000), whole.counters(7)
    for p in parts(7, 3):
        random, mine = BatchRandom(generator(), p.count, p), slice(p.first, p.first + p.count)
        assert torch.equal(random.integers(1000), numbers[mine])
        own_keys, own_places = random.counters(p.count)
        assert torch.equal(own_keys, keys[mine])
        assert torch.equal(own_places, places[mine])


def test_several_draws_for_each_image_are_different_for_all_parts() -> None:
    drawn = [BatchRandom(generator(), p.count, p).normal(torch.zeros(2 * p.count, 4)) for p in parts(6, 2)]
    assert len(torch.cat(drawn).unique()) == 2 * 6 * 4


def test_some_images_of_a_part_have_no_stream() -> None:
    part = Fixed(0, 3, 6)
    with pytest.raises(ValueError, match="not for some"):
        BatchRandom(generator(), 3, part).subset(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="got 2 rows"):
        BatchRandom(generator(), 3, part).normal(torch.zeros(2, 4))


def test_parts_are_augmented_as_the_whole_is() -> None:
    augment, x = Augment(crop=2, flip=True), torch.rand(7, 1, 8, 8, generator=generator())
    whole = augment(x, generator())
    mine = [augment(x[p.first : p.first + p.count], generator(), 7, p.first) for p in parts(7, 3)]
    assert torch.equal(torch.cat(mine), whole)


def test_one_process_changes_nothing() -> None:
    ranks, loss = Ranks(), torch.ones((), requires_grad=True)
    assert ranks.take(5) == slice(0, 5)
    assert ranks.weighed(loss) is loss
    assert ranks.sums(torch.tensor(2.5), 3) == (2.5, 3.0)
    assert ranks.part is None
    assert ranks.stream == ""


def checked(defenses: list[Any] | None = None, **train: Any) -> None:
    raw = small(model={"name": "mlp", "hidden": [4]}, runs={"r": {"defenses": defenses or []}})
    raw["train"] = {"epochs": 1, "batch_size": 64, "devices": 2, **train}
    plan = resolve(raw)
    check_runs(plan.runs, plan.prepare(Digits().load(), torch.device("cpu")), plan.threat)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"compile": "on"}, "expected 1 with compile: on, got 2"),
        ({"batch_size": 3, "devices": 4}, "at most the 3 images of a minibatch, got 4"),
        ({"stages": [{}, {"devices": 1}]}, "the same number in all stages"),
        ({"defenses": [f"{__name__}:Foreign"]}, "1 with .*Foreign, which does not say"),
        ({"defenses": [{"name": "broken", "how": "batch_noise"}]}, "1 with broken"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        checked(**change)


def test_what_they_can_do_is_not() -> None:
    checked([f"{__name__}:Divides", "pgd_at"])


def test_one_device_is_no_part_of_the_id() -> None:
    def record(**train: Any) -> dict[str, Any]:
        stages: dict[str, Any] = resolve(small(runs={"r": {"train": train}})).runs[0].record()["stages"][0]
        return stages

    assert record(devices=1) == record()
    assert "devices" not in record()
    assert record(devices=2) == {**record(), "devices": 2}


def test_a_network_without_weights_has_no_helpers() -> None:
    raw = small(model="identity", task="restore", attacks={}, runs={"r": {}})
    raw["train"] = {"epochs": 1, "devices": 2}
    plan = resolve(raw)
    with pytest.raises(UserError, match="1 for a network without weights"):
        check_runs(plan.runs, plan.prepare(Digits().load(), torch.device("cpu")), plan.threat)
