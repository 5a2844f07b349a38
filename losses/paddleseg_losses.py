"""PaddleSeg 2.8's losses, so that they train on Paddle 3, too; what cannot train here is refused by name.

PaddleSeg's losses count on Paddle 2's conversion of integers in many places: see common.paddle2_arithmetic. Subclasses
of what that gives check and copy what they are called with.

`paddleseg_losses()` are the classes to register. Each has `refusal(cfg, num_classes) -> str | None`, with which the
check of a config asks why one cannot train here.
"""
import functools
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import nn

from common.errors import UserError
from common.paddle2_arithmetic import compiled

PACKAGE = 'paddleseg.models.losses'
# Module -> the losses of it that take (logits, labels).
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
}
REFUSED = {
    'DistillCrossEntropyLoss': 'it needs the logits of a teacher; there is no distillation here',
    'KLLoss': 'it compares two outputs with each other (distillation), not an output with labels',
    'EdgeAttentionLoss': 'it needs a pair of outputs, segmentation and edges (GSCNN)',
    'OhemEdgeAttentionLoss': 'it needs a pair of outputs, segmentation and edges (DecoupledSegNet)',
    'PointCrossEntropyLoss': 'it needs the sampled points of PointRend beside the logits',
    'PixelContrastCrossEntropyLoss': 'it needs an embedding of every pixel beside the logits (HRNetW48Contrast)',
    'MaskFormerLoss': 'it needs masks and classes of instances, which the datasets here do not give (MaskFormer)',
    'SemanticConnectivityLoss': 'its value comes from an argmax and has no gradient: training is the same without it',
}
CHANNELS = {'FocalLoss': (2,), 'LovaszHingeLoss': (1, 2), 'DetailAggregateLoss': (1,)}  # that the logits must have
TWO_CLASSES = ('FocalLoss', 'LovaszHingeLoss')  # those of CHANNELS that are for the segmentation itself
STATES_CLASSES = {'RMILoss': ('num_classes', 19)}  # loss -> (parameter, default)
# (loss, parameter) -> (the values that work, why no others)
PARAMETERS: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    ('BCELoss', 'edge_label'): ((False,), 'the datasets here give no edges'),
    ('BCELoss', 'weight'): ((None, 'dynamic'), 'PaddleSeg takes a tensor otherwise, which a config cannot hold'),
    ('RelaxBoundaryLoss', 'calculate_weights'): ((False,), 'PaddleSeg 2.8 calls the flag itself as a function'),
    ('RelaxBoundaryLoss', 'border'): ((1,), 'PaddleSeg 2.8 cuts the shifted labels for a border of 1 only'),
    ('CrossEntropyLoss', 'data_format'): (('NCHW',), 'the outputs of all networks here are (N, C, H, W)'),
    ('L1Loss', 'reduction'): (('mean', 'sum'), 'a loss is one number'),
    ('MSELoss', 'reduction'): (('mean', 'sum'), 'a loss is one number'),
}


# ---------------------------------------------------------------- the classes to register

class _Adapted(nn.Layer):
    """In front of one of PaddleSeg's losses: float32 logits of the right number of channels, labels that it may change.

    Labels come as int64 (N, H, W). Where every pixel is void the loss is 0, with a gradient of 0.
    """
    ignore_index: int = 255

    def forward(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Float logits (N, C, H, W) and integer labels (N, H, W) or (N, 1, H, W) -> 0-d loss."""
        name = type(self).__name__
        if logits.dtype != paddle.float64:
            logits = logits.astype('float32')
        channels, classes = logits.shape[1], getattr(self, 'num_classes', logits.shape[1])
        if channels not in CHANNELS.get(name, (channels,)):
            raise UserError(f'{name}: expected an output of {" or ".join(map(str, CHANNELS[name]))} channel(s), found '
                            f'{channels}; use another loss for that output')
        if channels != classes:
            raise UserError(f'{name}: expected num_classes {channels}, as the output has channels, found {classes}; '
                            'correct num_classes of the loss')
        labels = labels.astype('int64').reshape([labels.shape[0], *labels.shape[-2:]]).clone()
        return self._value(logits, labels).reshape([])

    def _value(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        return super().forward(logits, labels)


class _Regression(_Adapted):
    """L1Loss and MSELoss: labels of the logits' shape and dtype.

    One channel is compared with the class ids, several channels with the one-hot labels. Void pixels are left out, by
    MSELoss too, which takes ignore_index and forgets it.
    """
    reduction: str

    def _value(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        labels = labels.unsqueeze(1)
        valid = labels != self.ignore_index
        labels = paddle.where(valid, labels, paddle.zeros_like(labels))
        if logits.shape[1] > 1:
            labels = F.one_hot(labels.squeeze(1), logits.shape[1]).transpose([0, 3, 1, 2])
        valid = valid.astype(logits.dtype)
        value = super()._value(logits * valid, labels.astype(logits.dtype) * valid)
        return value / (valid.mean() + 1e-10) if self.reduction == 'mean' else value


class _Lovasz(_Adapted):
    """The Lovasz losses, which fail, or give an empty tensor, where every pixel is void."""

    def _value(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        valid = (labels != self.ignore_index).any()
        return super()._value(logits, labels) if valid else logits.sum() * 0


class _SemanticEncoding(_Adapted):
    """SECrossEntropyLoss: which classes an image has, for the one vector per image of ENCNet's second output."""

    def _value(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        if logits.size != logits.shape[0] * logits.shape[1]:
            raise UserError(f'{type(self).__name__}: expected an output (N, C), found {tuple(logits.shape)}; it goes '
                            'with the second output of ENCNet, use another loss for that output')
        return super()._value(logits.reshape(logits.shape[:2]), labels)


class _MSE(_Regression):
    def __init__(self, reduction: str = 'mean', ignore_index: int = 255) -> None:
        super().__init__(reduction, ignore_index)  # type: ignore[arg-type]  # of MSELoss, next in line
        self.ignore_index = ignore_index


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
def paddleseg_losses() -> dict[str, type]:
    """{name: class} for PaddleSeg's registry of losses."""
    adapters: dict[str, type] = {'LovaszSoftmaxLoss': _Lovasz, 'LovaszHingeLoss': _Lovasz, 'L1Loss': _Regression,
                                 'MSELoss': _MSE, 'SECrossEntropyLoss': _SemanticEncoding}
    bases: dict[str, tuple[type, ...]] = {name: (adapters.get(name, _Adapted), vars(module)[name])
             for file, names in MODULES.items() for module in [compiled(f'{PACKAGE}.{file}')] for name in names}
    bases.update({name: (nn.Layer,) for name in REFUSED})
    return {name: type(name, base, {'refusal': staticmethod(functools.partial(_refusal, name)), '__module__': __name__})
            for name, base in bases.items()}
