"""Registration of this repository's classes with PaddleSeg, which builds the objects that a config names."""
from typing import Any

from paddleseg.cvlibs import manager

from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.paddleseg_transforms import RandomPaddingCrop
from losses import BootstrappedCrossEntropyLoss
from losses.paddleseg_losses import paddleseg_losses
from models.hrnet import BACKBONES, HRNet
from models.mscale_ocrnet import MscaleOCRNet
from models.paddleseg_models import paddleseg_backbones, paddleseg_models, read_weights_safely
from models.paddleseg_mscale_ocrnet import mscale_ocrnet, of_config


def register() -> None:
    """Put our classes into PaddleSeg's registries; its own of the same name (DiceLoss, ...) are replaced."""
    read_weights_safely()
    manager.LOSSES.components_dict.update(paddleseg_losses())
    manager.MODELS.components_dict.update(paddleseg_models())
    manager.BACKBONES.components_dict.update(paddleseg_backbones())
    manager.MODELS.components_dict['MscaleOCRNet'] = mscale_ocrnet  # PaddleSeg's own as well
    ours: list[tuple[Any, list[Any]]] = [
        (manager.BACKBONES, [*BACKBONES, HRNet]),
        (manager.DATASETS, [CityscapesAutolabeling]), (manager.TRANSFORMS, [RandomPaddingCrop]),
        (manager.LOSSES, [BootstrappedCrossEntropyLoss])]
    for registry, components in ours:
        for component in components:
            registry.components_dict[component.__name__] = component


def is_the_recipes(model_cfg: dict[str, Any]) -> bool:
    """Whether `model` of a config is this repository's MscaleOCRNet."""
    return model_cfg['type'] == 'MscaleOCRNet' and of_config(model_cfg) is MscaleOCRNet
