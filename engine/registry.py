"""The one door between the engine and the rooms it does not know: models, datasets, losses."""
from paddleseg.cvlibs import manager

from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.description import describe
from datasets.labels import IGNORE_INDEX, LabelSet, distinct_colors
from datasets.sampling import EpochStream, shard
from losses import BootstrappedCrossEntropyLoss, DiceLoss, weighted_losses
from models import lean
from models.hrnet import BACKBONES, HRNet
from models.lean_network import LeanNetwork, PaddleParts
from models.mscale_ocrnet import MscaleOCRNet
from models.weights import check_path as check_weights_path
from models.weights import load_weights

__all__ = ['IGNORE_INDEX', 'CityscapesAutolabeling', 'EpochStream', 'LabelSet', 'LeanNetwork', 'PaddleParts',
           'check_weights_path', 'describe', 'distinct_colors', 'lean', 'load_weights', 'register', 'shard',
           'weighted_losses']


def register():
    """Put our classes into PaddleSeg's registries; its own of the same name (DiceLoss, ...) are replaced, silently."""
    for registry, components in ((manager.MODELS, [MscaleOCRNet]),
                                 (manager.BACKBONES, [*BACKBONES, HRNet]),
                                 (manager.DATASETS, [CityscapesAutolabeling]),
                                 (manager.LOSSES, [DiceLoss, BootstrappedCrossEntropyLoss])):
        for component in components:
            registry.components_dict[component.__name__] = component
