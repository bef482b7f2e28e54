"""All figures of the command ``plot``: one import and one entry each."""

from robustbench_sparse.reporting.figures.base import Drawing as Drawing
from robustbench_sparse.reporting.figures.base import Figures as Figures
from robustbench_sparse.reporting.figures.base import TableDrawing as TableDrawing
from robustbench_sparse.reporting.figures.channels import Channels
from robustbench_sparse.reporting.figures.features import Features
from robustbench_sparse.reporting.figures.filters import Filters
from robustbench_sparse.reporting.figures.flips import Flips
from robustbench_sparse.reporting.figures.layer import LayerPicture
from robustbench_sparse.reporting.figures.neurons import Neurons
from robustbench_sparse.reporting.figures.path import SettingPath
from robustbench_sparse.reporting.figures.radii import AgainstEps
from robustbench_sparse.reporting.figures.restored import Restored
from robustbench_sparse.reporting.figures.skips import Skips
from robustbench_sparse.reporting.figures.tradeoff import TradeOff
from robustbench_sparse.reporting.figures.weights import Weights
from robustbench_sparse.reporting.figures.widths import Widths

FIGURES: dict[str, type[Figures]] = {
    "weights": Weights,
    "channels": Channels,
    "layer": LayerPicture,
    "path": SettingPath,
    "filters": Filters,
    "features": Features,
    "widths": Widths,
    "skips": Skips,
    "neurons": Neurons,
    "images": Restored,
    "tradeoff": TradeOff,
    "eps": AgainstEps,
    "flips": Flips,
}
