"""The loop without defenses is plain PyTorch, bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.augment import Augment
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.training.trainer import Trainer
from tests.helpers.small import small


def test_a_run_without_defenses_equals_a_plain_loop(tmp_path: Path) -> None:
    plan = resolve(small(runs={"natural": {"train": {"selection": "last"}}}))
    data = PreparedData(plan.dataset.load(None, None), validation=100, train_limit=600)
    trained = Trainer(plan.runs[0], data, plan.threat, 7, tmp_path / "checkpoint.pt", Silent()).train()

    torch.manual_seed(derive(7, "init"))
    model = plan.runs[0].model.build(1, 8, 10).to(memory_format=torch.channels_last)
    order = torch.Generator().manual_seed(derive(7, "data"))
    draws = torch.Generator().manual_seed(derive(7, "augment"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2])
    for _ in range(4):
        for x, y in data.batches(order, 64):
            optimizer.zero_grad()
            F.cross_entropy(model(Augment(crop=1, flip=True)(x, draws)), y).backward()
            optimizer.step()
        scheduler.step()

    assert trained.weights.keys() == model.state_dict().keys()
    for name, expected in model.state_dict().items():
        assert torch.equal(trained.weights[name], expected), name
    assert trained.history[-1]["train_accuracy"] > 25, "networks that learned: chance is 10"
