"""Networks without their dead channels: found, removed for real, proven equal, written and read back."""

from robustbench_sparse.shrink.shrunk_file import load_shrunk as load_shrunk
from robustbench_sparse.shrink.surgery import Shrunk as Shrunk
from robustbench_sparse.shrink.surgery import shrink_network as shrink_network
