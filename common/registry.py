"""Registration of this repository's classes with PaddleSeg, which builds the objects that a config names."""
from typing import Any

from paddleseg.cvlibs import manager

from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from losses import BootstrappedCrossEntropyLoss, DiceLoss
from models.hrnet import BACKBONES, HRNet
from models.mscale_ocrnet import MscaleOCRNet


def register() -> None:
    """Put our classes into PaddleSeg's registries; its own of the same name (DiceLoss, ...) are replaced."""
    ours: list[tuple[Any, list[Any]]] = [
        (manager.MODELS, [MscaleOCRNet]), (manager.BACKBONES, [*BACKBONES, HRNet]),
        (manager.DATASETS, [CityscapesAutolabeling]), (manager.LOSSES, [DiceLoss, BootstrappedCrossEntropyLoss])]
    for registry, components in ours:
        for component in components:
            registry.components_dict[component.__name__] = component
