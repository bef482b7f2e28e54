"""All tasks: one import and one entry each."""

from robustbench_sparse.tasks.base import Task as Task
from robustbench_sparse.tasks.classify import Classify as Classify
from robustbench_sparse.tasks.restore import Restore as Restore

TASKS: dict[str, type[Task]] = {
    "classify": Classify,
    "restore": Restore,
}
