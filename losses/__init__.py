"""The recipe's losses: pure functions (`functional`), layers on top (`layers`), the sum over outputs (`weighting`)."""
from .functional import bootstrapped_cross_entropy, dice, softmax_statistics
from .layers import BootstrappedCrossEntropyLoss, DiceLoss
from .weighting import check_labels, weighted_losses

__all__ = [
    'BootstrappedCrossEntropyLoss', 'DiceLoss', 'bootstrapped_cross_entropy', 'check_labels', 'dice',
    'softmax_statistics', 'weighted_losses'
]
