"""All data sets: one import and one entry each."""

from robustbench_sparse.data.augment import Augment as Augment
from robustbench_sparse.data.base import DataError as DataError
from robustbench_sparse.data.base import Dataset as Dataset
from robustbench_sparse.data.base import DatasetSpec as DatasetSpec
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.data.image_folder import ImageFolder
from robustbench_sparse.data.prepared import PreparedData as PreparedData
from robustbench_sparse.data.torchvision_sets import CIFAR10, CIFAR100, MNIST, FashionMNIST

DATASETS: dict[str, type[DatasetSpec]] = {
    "digits": Digits,
    "mnist": MNIST,
    "fashion_mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "image_folder": ImageFolder,
}
