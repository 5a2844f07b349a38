"""Registration of this repository's classes with PaddleSeg, which builds the objects that a config names."""
from paddleseg.cvlibs import manager

from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from losses import BootstrappedCrossEntropyLoss, DiceLoss
from losses.paddleseg_losses import paddleseg_losses
from models.hrnet import BACKBONES, HRNet
from models.mscale_ocrnet import MscaleOCRNet


def register() -> None:
    """Put our classes into PaddleSeg's registries; its own of the same name (DiceLoss, ...) are replaced, silently."""
    for registry, components in ((manager.MODELS, [MscaleOCRNet]),
                                 (manager.BACKBONES, [*BACKBONES, HRNet]),
                                 (manager.DATASETS, [CityscapesAutolabeling]),
                                 (manager.LOSSES, [*paddleseg_losses(), DiceLoss, BootstrappedCrossEntropyLoss])):
        for component in components:
            registry.components_dict[component.__name__] = component
