"""All networks: one import and one entry each."""

from robustbench_sparse.models.autoencoder import Autoencoder
from robustbench_sparse.models.base import ModelSpec as ModelSpec
from robustbench_sparse.models.cnn import CNN
from robustbench_sparse.models.convnet import ConvNet
from robustbench_sparse.models.dense_residual import DenseResidual
from robustbench_sparse.models.densenet import DenseNet
from robustbench_sparse.models.fno import FNO
from robustbench_sparse.models.identity import Identity
from robustbench_sparse.models.lenet import LeNet
from robustbench_sparse.models.mlp import MLP
from robustbench_sparse.models.preact_resnet import PreActResNet
from robustbench_sparse.models.resnet18 import ResNet18
from robustbench_sparse.models.vgg16 import VGG16

MODELS: dict[str, type[ModelSpec]] = {
    "mlp": MLP,
    "autoencoder": Autoencoder,
    "dense_residual": DenseResidual,
    "identity": Identity,
    "densenet": DenseNet,
    "lenet": LeNet,
    "convnet": ConvNet,
    "preact_resnet": PreActResNet,
    "resnet18": ResNet18,
    "vgg16": VGG16,
    "cnn": CNN,
    "fno": FNO,
}
