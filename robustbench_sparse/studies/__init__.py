"""All numerical studies of the command ``study``: one import and one entry each."""

from robustbench_sparse.studies.base import Result as Result
from robustbench_sparse.studies.base import Study as Study
from robustbench_sparse.studies.bregman_tv import BregmanTV
from robustbench_sparse.studies.clip_1d import CLIP1D
from robustbench_sparse.studies.padding import Padding
from robustbench_sparse.studies.serw import SeRW

STUDIES: dict[str, type[Study]] = {
    "serw": SeRW,
    "clip_1d": CLIP1D,
    "bregman_tv": BregmanTV,
    "padding": Padding,
}
