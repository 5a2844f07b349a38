"""PaddleSeg 2.8's losses, so that they train on Paddle 3, too; what cannot train here is refused by name.

PaddleSeg's losses count on Paddle 2's conversion of integers in many places: see common.paddle2_arithmetic. Subclasses
of what that gives, losses.paddleseg_adapters, check and copy what they are called with.

`paddleseg_losses()` are the classes to register. Each has `refusal(cfg, num_classes) -> str | None`, with which the
check of a config asks why one cannot train here.
"""
import functools
from collections.abc import Callable, Sequence
from typing import Any

from paddle import nn

from common.paddle2_arithmetic import compiled

from .layers import DiceLoss
from .paddleseg_adapters import (
    MSE,
    Adapted,
    DualTask,
    Edges,
    Embeddings,
    Lovasz,
    Masks,
    Regression,
    SampledPoints,
    SegmentationAndEdges,
    SemanticEncoding,
    TwoOutputs,
    WithoutGradient,
)

PACKAGE = 'paddleseg.models.losses'
# Module -> the losses of it that train here.
MODULES = {
    'cross_entropy_loss': ('CrossEntropyLoss',),
    'binary_cross_entropy_loss': ('BCELoss',),
    'lovasz_loss': ('LovaszSoftmaxLoss', 'LovaszHingeLoss'),
    'gscnn_dual_task_loss': ('DualTaskLoss',),
    'ohem_cross_entropy_loss': ('OhemCrossEntropyLoss',),
    'decoupledsegnet_relax_boundary_loss': ('RelaxBoundaryLoss',),
    'l1_loss': ('L1Loss',),
    'mean_square_error_loss': ('MSELoss',),
    'focal_loss': ('FocalLoss', 'MultiClassFocalLoss'),
    'rmi_loss': ('RMILoss',),
    'detail_aggregate_loss': ('DetailAggregateLoss',),
    'semantic_encode_cross_entropy_loss': ('SECrossEntropyLoss',),
    'edge_attention_loss': ('EdgeAttentionLoss',),
    'ohem_edge_attention_loss': ('OhemEdgeAttentionLoss',),
    'point_cross_entropy_loss': ('PointCrossEntropyLoss',),
    'pixel_contrast_cross_entropy_loss': ('PixelContrastCrossEntropyLoss',),
    'maskformer_loss': ('MaskFormerLoss',),
    'kl_loss': ('KLLoss',),
    'semantic_connectivity_loss': ('SemanticConnectivityLoss',),
    'dice_loss': ('DiceLoss',),
}
# What is in front of a loss, if not Adapted.
ADAPTERS: dict[str, type] = {
    'LovaszSoftmaxLoss': Lovasz, 'LovaszHingeLoss': Lovasz, 'L1Loss': Regression, 'MSELoss': MSE,
    'SECrossEntropyLoss': SemanticEncoding, 'DualTaskLoss': DualTask, 'BCELoss': Edges,
    'EdgeAttentionLoss': SegmentationAndEdges,
    'OhemEdgeAttentionLoss': SegmentationAndEdges, 'PointCrossEntropyLoss': SampledPoints,
    'PixelContrastCrossEntropyLoss': Embeddings, 'MaskFormerLoss': Masks, 'KLLoss': TwoOutputs,
    'SemanticConnectivityLoss': WithoutGradient}
REFUSED = {
    'DistillCrossEntropyLoss': 'it compares with a teacher\'s logits, which only PaddleSeg\'s toolkit of its own for '
                               'distillation (deploy/slim/distill) has; PaddleSeg\'s train.py fails, too',
}
CHANNELS = {'FocalLoss': (2,), 'LovaszHingeLoss': (1, 2), 'DetailAggregateLoss': (1,)}  # that the logits must have
TWO_CLASSES = ('FocalLoss', 'LovaszHingeLoss')  # those of CHANNELS that are for the segmentation itself
# loss -> (parameter, default)
STATES_CLASSES = {'RMILoss': ('num_classes', 19), 'MaskFormerLoss': ('num_classes', 150)}
# (loss, parameter) -> (the values that work, why no others)
PARAMETERS: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    ('BCELoss', 'weight'): ((None, 'dynamic'), 'PaddleSeg takes a tensor otherwise, which a config cannot hold'),
    ('RelaxBoundaryLoss', 'calculate_weights'): ((False,), 'PaddleSeg 2.8 calls the flag itself as a function'),
    ('RelaxBoundaryLoss', 'border'): ((1,), 'PaddleSeg 2.8 cuts the shifted labels for a border of 1 only'),
    ('CrossEntropyLoss', 'data_format'): (('NCHW',), 'the outputs of all networks here are (N, C, H, W)'),
    ('PointCrossEntropyLoss', 'data_format'): (('NCHW',), 'the outputs of all networks here are (N, C, H, W)'),
    ('PointCrossEntropyLoss', 'weight'): ((None,), 'PaddleSeg 2.8 multiplies with the number of the class instead'),
    ('MaskFormerLoss', 'eos_coef'): ((0.1,), 'PaddleSeg 2.8 takes 0.1 whatever the config says'),
    ('SemanticConnectivityLoss', 'use_argmax'): ((True,), 'PaddleSeg 2.8 fails without'),
    ('L1Loss', 'reduction'): (('mean', 'sum'), 'a loss is one number'),
    ('MSELoss', 'reduction'): (('mean', 'sum'), 'a loss is one number'),
}


def _refusal(name: str, cfg: dict[str, Any], num_classes: int | None = None) -> str | None:
    """Why a loss of these parameters cannot train with so many classes (None: unknown yet, see _Adapted)."""
    if num_classes is not None and name in TWO_CLASSES and num_classes not in CHANNELS[name]:
        return f'it is for {" or ".join(map(str, CHANNELS[name]))} class(es), not for {num_classes}'
    if num_classes is not None and name in STATES_CLASSES:
        parameter, default = STATES_CLASSES[name]
        if cfg.get(parameter, default) != num_classes:
            return f'its {parameter} must be {num_classes}, the number of classes; it is {cfg.get(parameter, default)}'
    for (loss, parameter), (valid, reason) in PARAMETERS.items():
        if loss == name and cfg.get(parameter, valid[0]) not in valid:
            return f'its {parameter} must be {" or ".join(map(str, valid))}: {reason}'
    return REFUSED.get(name)


@functools.cache
def _adapted() -> dict[str, type]:
    bases: dict[str, tuple[type, ...]] = {name: (ADAPTERS.get(name, Adapted), vars(module)[name])
             for file, names in MODULES.items() for module in [compiled(f'{PACKAGE}.{file}')] for name in names}
    bases.update({name: (nn.Layer,) for name in REFUSED})
    return {name: type(name, base, {'refusal': staticmethod(functools.partial(_refusal, name)), '__module__': __name__,
                                    'channels': CHANNELS.get(name, ())})
            for name, base in bases.items()}


def dice_loss(ignore_index: int = 255, weight: Sequence[float] | None = None, smooth: float | None = None) -> nn.Layer:
    """The layer of a config's DiceLoss: the recipe's (losses.functional.dice), or, if it says weight or smooth,
    PaddleSeg's.

    PaddleSeg's is the mean over classes of weight_c (1 - (2 sum(p_c y_c) + smooth) / (sum(p_c) + sum(y_c) + smooth)),
    with sums over each image's pixels, and the mean over images; smooth is 1 if weight alone is given.
    """
    if weight is None and smooth is None:
        return DiceLoss(ignore_index)
    return _adapted()['DiceLoss'](weight, ignore_index, 1.0 if smooth is None else smooth)


def paddleseg_losses() -> dict[str, Callable]:
    """{name: class, or function that gives one of its objects} for PaddleSeg's registry of losses."""
    return {**_adapted(), 'DiceLoss': dice_loss}
