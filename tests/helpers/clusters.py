"""A cluster of Ray's whose nodes are all on this machine, and that loses one now and then."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# So that a node that is gone is found gone in a second or two.
_QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
_STORE = 80 << 20


@contextlib.contextmanager
def cluster(*nodes: Mapping[str, float]) -> Iterator[Any]:
    """A cluster with a head that runs nothing and a node for each of these resources, as in ``{"num_cpus": 1}``."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 0,
        "object_store_memory": _STORE,
        "include_dashboard": False,
        "_system_config": _QUICK,
    }
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for node in nodes:
            add(made, node)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def add(made: Any, node: Mapping[str, float]) -> Any:
    """One more node."""
    return made.add_node(object_store_memory=_STORE, **node)


class Kills:
    """Kills a node whenever something holds, so many times; the others have to go on with its work.

    Args:
        made: the cluster.
        when: called with the number of kills so far, until it holds.
        times: kills.
    """

    def __init__(self, made: Any, when: Callable[[int], bool], times: int = 1) -> None:
        self._made, self._when, self._times = made, when, times
        self.killed = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Kills:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while self.killed < self._times and not self._ended.is_set():
            if self._when(self.killed):
                node = next(n for n in self._made.list_all_nodes() if n is not self._made.head_node)
                self._made.remove_node(node, allow_graceful=False)
                self.killed += 1
            else:
                time.sleep(0.02)


def where(start: str, label: str, seed: int, wait: bool) -> tuple[str, str]:
    """A unit that writes down on which node it was, and which GPUs it was given."""
    import ray

    context = ray.get_runtime_context()
    given = context.get_accelerator_ids().get("GPU") or ["none"]
    Path(start).with_name(f"{label}-{seed}.where").write_text(f"{context.get_node_id()} {','.join(given)}")
    return "done", ""
