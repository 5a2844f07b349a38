"""In front of PaddleSeg's losses: what each takes of a training step, in the form that it counts on.

`arguments(outputs, number, labels, edges)` of a loss says what it takes; one without that method takes output and
labels. `losses.weighting` asks for it, so that PaddleSeg's models with other outputs than logits, and its losses on
other things than labels, need no more than a class here.
"""
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from common.errors import UserError

from .connectivity import semantic_connectivity

logger = logging.getLogger(__name__)


def kind_of(output: Any) -> str:
    """An output of a network in words, for errors."""
    if isinstance(output, paddle.Tensor):
        return f'a tensor {tuple(output.shape)}'
    if isinstance(output, Mapping):
        return f'a mapping of {", ".join(output)}'
    return f'a list of {len(output)}'


def in_float(output: Any) -> Any:
    """Tensors, and mappings and lists of them, as float32; float64 stays."""
    if isinstance(output, paddle.Tensor):
        return output.astype('float32') if output.dtype in (paddle.float16, paddle.bfloat16) else output
    if isinstance(output, Mapping):
        return {key: in_float(value) for key, value in output.items()}
    return [in_float(value) for value in output]


class Adapted(nn.Layer):
    """A loss on logits: float32, of the right number of channels, and labels that it may change.

    Labels come as int64 (N, H, W). Where every pixel is void the loss is 0, with a gradient of 0.
    """
    ignore_index: int = 255
    channels: tuple[int, ...] = ()  # that the logits must have; empty: any
    takes = 'logits'  # for errors; the models that give it

    def arguments(self, outputs: Sequence[Any], number: int, labels: paddle.Tensor,
                  edges: paddle.Tensor | None) -> tuple[Any, ...]:
        """What `forward` takes, of the network's outputs, the number of the output that loss.types gives to this loss,
        labels int64 (N, H, W), and edges uint8 (N, H, W), 1 at edges, or None."""
        return outputs[number], labels

    def forward(self, output: Any, labels: paddle.Tensor) -> paddle.Tensor:
        """An output, in most classes logits (N, C, H, W), and integer labels (N, H, W) or (N, 1, H, W) -> 0-d loss."""
        self._check(output)
        labels = labels.astype('int64').reshape([labels.shape[0], *labels.shape[-2:]]).clone()
        return self._value(in_float(output), labels).reshape([])

    def _value(self, output: Any, labels: paddle.Tensor) -> paddle.Tensor:
        return super().forward(output, labels)

    def _fits(self, output: Any) -> bool:
        return isinstance(output, paddle.Tensor)

    def _check(self, output: Any) -> None:
        name = type(self).__name__
        if not self._fits(output):
            raise UserError(f'{name}: expected an output of {self.takes}, found {kind_of(output)}; use another loss '
                            'for that output, or move it in loss.types')
        if not isinstance(output, paddle.Tensor):
            return
        channels, classes = output.shape[1], getattr(self, 'num_classes', output.shape[1])
        if self.channels and channels not in self.channels:
            raise UserError(f'{name}: expected an output of {" or ".join(map(str, self.channels))} channel(s), found '
                            f'{channels}; use another loss for that output')
        weight = getattr(self, 'weight', None)
        if isinstance(weight, (Sequence, paddle.Tensor)) and not isinstance(weight, str) and len(weight) != channels:
            raise UserError(f'{name}: expected {channels} numbers in weight, one for each channel of the output, found '
                            f'{len(weight)}; correct weight of the loss')
        if channels != classes:
            raise UserError(f'{name}: expected num_classes {channels}, as the output has channels, found {classes}; '
                            'correct num_classes of the loss')


class Regression(Adapted):
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


class MSE(Regression):
    """MSELoss, which has no ignore_index of its own."""

    def __init__(self, reduction: str = 'mean', ignore_index: int = 255) -> None:
        super().__init__(reduction, ignore_index)  # type: ignore[arg-type]  # of MSELoss, next in line
        self.ignore_index = ignore_index


class Lovasz(Adapted):
    """The Lovasz losses, which fail, or give an empty tensor, where every pixel is void."""

    def _value(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        valid = (labels != self.ignore_index).any()
        return super()._value(logits, labels) if valid else logits.sum() * 0


class SemanticEncoding(Adapted):
    """SECrossEntropyLoss: which classes an image has, for the one vector per image of ENCNet's second output."""

    def _value(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        if logits.size != logits.shape[0] * logits.shape[1]:
            raise UserError(f'{type(self).__name__}: expected an output (N, C), found {tuple(logits.shape)}; it goes '
                            'with the second output of ENCNet, use another loss for that output')
        return super()._value(logits.reshape(logits.shape[:2]), labels)


class DualTask(Adapted):
    """DualTaskLoss without `max` over all pixels, whose derivative takes Paddle 3 on a CPU a time that grows with the
    square of their number; of several equal maxima, one gets it."""

    def compute_grad_mag(self, x: paddle.Tensor) -> paddle.Tensor:
        """Size of the smoothed gradient of each channel, float (N, C, H, W) -> the same, over the largest of all."""
        one_channel = x.flatten(0, 1).unsqueeze(1)  # all channels have the same filters
        smooth = self.conv_tri(one_channel, r=4)  # DualTaskLoss's
        across = paddle.to_tensor([-0.5, 0, 0.5], x.dtype).reshape([1, 1, 1, 3])
        right = F.conv2d(smooth, across, padding='same')
        down = F.conv2d(smooth, across.transpose([0, 1, 3, 2]), padding='same')
        size = paddle.sqrt(right * right + down * down + 1e-6)
        return (size / size.flatten().topk(1)[0]).reshape(x.shape)


class Edges(Adapted):
    """BCELoss, which with edge_label takes edges in place of labels."""
    edge_label: bool

    def arguments(self, outputs: Sequence[Any], number: int, labels: paddle.Tensor,
                  edges: paddle.Tensor | None) -> tuple[Any, ...]:
        if self.edge_label and edges is None:
            raise UserError(f'{type(self).__name__}: expected edges for edge_label: True, found a dataset without; set '
                            'edge: True in train_dataset')
        return outputs[number], edges if self.edge_label else labels


class SegmentationAndEdges(Adapted):
    """EdgeAttentionLoss and OhemEdgeAttentionLoss: cross entropy where the network itself sees edges."""
    takes = 'a pair, segmentation and edges (as of GSCNN and DecoupledSegNet)'

    def _fits(self, output: Any) -> bool:
        return isinstance(output, (tuple, list)) and len(output) == 2 and output[1].shape[1:2] == [1]


class SampledPoints(Adapted):
    """PointCrossEntropyLoss: logits (N, C, P) at points (N, P, 2)."""
    takes = 'a pair, logits and their points (as of PointRend)'

    def _fits(self, output: Any) -> bool:
        return isinstance(output, (tuple, list)) and len(output) == 2 and output[1].shape[-1:] == [2]


class Embeddings(Adapted):
    """PixelContrastCrossEntropyLoss: 'seg', logits (N, C, h, w), and 'embed', (N, D, h, w).

    A batch in which no class of an image has more than max_views pixels has no samples, and PaddleSeg divides by their
    number: here its loss is 0.
    """
    takes = 'a mapping of seg and embed (as of HRNetW48Contrast)'
    max_views: int

    def _fits(self, output: Any) -> bool:
        return isinstance(output, Mapping) and {'seg', 'embed'} <= set(output)

    def _value(self, output: Mapping[str, paddle.Tensor], labels: paddle.Tensor) -> paddle.Tensor:
        embeddings = output['embed']
        small = F.interpolate(labels.unsqueeze(1).astype('float32'), embeddings.shape[2:], mode='nearest')
        for image in small.astype('int64').flatten(1).numpy():
            if (np.unique(image[image != self.ignore_index], return_counts=True)[1] > self.max_views).any():
                return super()._value(output, labels)
        return embeddings.sum() * 0


class Masks(Adapted):
    """MaskFormerLoss: 'pred_logits' (N, Q, C + 1), 'pred_masks' (N, Q, h, w), and 'aux_outputs', a list of the same.

    The masks of an image's classes, which PaddleSeg's transform GenerateInstanceTargets makes for all classes of the
    dataset (314 MB per image of ADE20K at 512x512), are taken from its labels here.
    """
    takes = 'a mapping of pred_logits and pred_masks (as of MaskFormer)'

    def _fits(self, output: Any) -> bool:
        return isinstance(output, Mapping) and {'pred_logits', 'pred_masks'} <= set(output)

    def _value(self, output: Mapping[str, Any], labels: paddle.Tensor) -> paddle.Tensor:
        own: Any = self  # its methods are PaddleSeg's
        targets = [self._target(image) for image in labels]
        number = paddle.full([1], sum(len(target['labels']) for target in targets), 'float32')
        processes = paddle.distributed.get_world_size()
        if processes > 1:
            paddle.distributed.all_reduce(number)
        number = (number / processes).clip(min=1)
        total = output['pred_logits'].sum() * 0 + output['pred_masks'].sum() * 0
        if not any(len(target['labels']) for target in targets):
            return total
        for layer in (output, *output.get('aux_outputs', ())):
            indices = own.matcher(layer, targets)
            for kind in own.losses:
                for name, value in own.get_loss(kind, layer, targets, indices, number).items():
                    total = total + own.weight_dict[name] * value
        return total

    def _target(self, label: paddle.Tensor) -> dict[str, paddle.Tensor]:
        """int64 (H, W) -> 'labels' int64 (n,), its classes, and 'masks' bool (n, H, W)."""
        classes = label.unique()
        valid = classes != self.ignore_index
        if not valid.any():  # Paddle 2.6 cannot compare with nothing
            return {'labels': paddle.zeros([0], 'int64'), 'masks': paddle.zeros([0, *label.shape], 'bool')}
        classes = classes[valid]
        return {'labels': classes, 'masks': label.unsqueeze(0) == classes.unsqueeze([1, 2])}


class TwoOutputs(nn.Layer):
    """KLLoss: the first output against the second, which gets no gradient; labels are not used, as in PaddleSeg."""

    def arguments(self, outputs: Sequence[Any], number: int, labels: paddle.Tensor,
                  edges: paddle.Tensor | None) -> tuple[Any, ...]:
        """As of Adapted."""
        if len(outputs) < 2 or kind_of(outputs[0]) != kind_of(outputs[1]):
            raise UserError(f'{type(self).__name__}: expected a model with two outputs of one shape, found '
                            f'{" and ".join(map(kind_of, outputs[:2]))}; use another loss')
        return in_float(outputs[0]), in_float(outputs[1]).detach()


class WithoutGradient(Adapted):
    """SemanticConnectivityLoss: computed from the argmax of the logits, so that nothing is learned from it."""
    max_pred_num_conn: int
    told = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not WithoutGradient.told:
            logger.warning('%s: PaddleSeg computes it from the argmax of the output, which has no gradient; it is part '
                           'of the logged loss, and training is the same without it', type(self).__name__)
        WithoutGradient.told = True

    def _value(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        value = semantic_connectivity(logits.argmax(1).numpy(), labels.numpy(), self.ignore_index,
                                      self.max_pred_num_conn)
        return paddle.full([], value, logits.dtype) + logits[:1, :1, :1, :1].sum() * 0  # so that there is a gradient
