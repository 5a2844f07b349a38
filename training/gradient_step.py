"""One update of the weights: forward, losses and backward over the micro-batches of a step, and its check."""
import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import paddle

from common.errors import UserError
from losses import check_labels, weighted_losses

DTYPES: dict[str, Literal['float16', 'bfloat16']] = {'fp16': 'float16', 'bf16': 'bfloat16'}


class GradientStep:
    """One optimizer step on a list of micro-batches: backward(), not_finite(), then step() or drop().

    model: the network. losses: {'types', 'coef'} as PaddleSeg builds it. The gradient is the mean over the
    micro-batches (and over the processes), so that losses which average over images, like the cross entropies, give
    the update of one large batch; dice, which sums over the images of a micro-batch, gives the mean of their dices.
    precision: 'fp32', or 'fp16' / 'bf16' for the network under autocast; losses are always float32.
    """

    def __init__(self, model: paddle.nn.Layer, losses: Mapping[str, Any], optimizer: paddle.optimizer.Optimizer,
                 precision: str = 'fp32') -> None:
        if precision != 'fp32' and paddle.get_device() == 'cpu':
            raise UserError(f'--precision {precision}: expected a GPU, found a CPU, where Paddle has no {precision} '
                             'kernels for training; use --precision fp32')
        self.optimizer = optimizer
        self.scaler = paddle.amp.GradScaler(init_loss_scaling=1024) if precision == 'fp16' else None
        self._model = paddle.DataParallel(model) if paddle.distributed.get_world_size() > 1 else model
        self._parameters = [p for p in model.parameters() if not p.stop_gradient]
        self._losses = losses
        self._num_classes = 0  # of the last outputs
        self._dtype = DTYPES.get(precision)

    def backward(self, batches: Sequence[Mapping[str, paddle.Tensor]]) -> tuple[tuple[str, ...], paddle.Tensor]:
        """Gradients of the mean loss; returns ('loss', *names of its terms) and their values.

        The values are a float64 tensor, means over the micro-batches. Nothing is read from the device.
        """
        names: tuple[str, ...] = ()
        total: paddle.Tensor | None = None
        for i, batch in enumerate(batches):
            with self._without_sync(last=i == len(batches) - 1):
                loss, terms = self._loss(batch)
                loss = loss / len(batches)
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            values = [value.detach().reshape([]).astype('float64') for value in (loss, *terms.values())]
            if len(batches) > 1:  # the loss is divided already, as the gradient needs it
                number = paddle.full([], len(batches), 'float64')  # a tensor: Paddle multiplies by 1 / a Python number
                values[1:] = [value / number for value in values[1:]]
            numbers = paddle.stack(values)
            total = numbers if total is None else total + numbers
            names = 'loss', *terms
        assert total is not None  # there is at least one micro-batch
        return names, total

    def check_labels(self, batches: Sequence[Mapping[str, paddle.Tensor]]) -> None:
        """UserError if there are labels outside of the classes: on a GPU they make the loss NaN at first."""
        for batch in batches:
            check_labels(self._num_classes, batch['label'], self._losses)

    def _loss(self, batch: Mapping[str, paddle.Tensor]) -> tuple[paddle.Tensor, dict[str, paddle.Tensor]]:
        with paddle.amp.auto_cast(enable=self._dtype is not None, level='O1', dtype=self._dtype or 'float16'):
            outputs = self._model(batch['img'])
        self._num_classes = outputs[0].shape[1] if isinstance(outputs[0], paddle.Tensor) else 0
        return weighted_losses(outputs, batch['label'], self._losses, batch.get('edge'))

    def _without_sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Processes exchange gradients once per step, with the last micro-batch."""
        several = isinstance(self._model, paddle.DataParallel)
        return self._model.no_sync() if several and not last else contextlib.nullcontext()

    @paddle.no_grad()
    def not_finite(self, values: paddle.Tensor) -> paddle.Tensor:
        """0-d bool on the device: loss or gradient is not finite, given backward()'s values.

        In fp16 the gradients may overflow, and the scaler handles that.
        """
        finite = paddle.isfinite(values[0])
        if not self.scaler:
            # Sums, because they propagate NaN, which Paddle's max on a CPU does not.
            sums = [p.grad.abs().sum() for p in self._parameters if p.grad is not None]
            finite = finite & paddle.isfinite(paddle.stack(sums)).all()
        return ~finite

    def step(self) -> None:
        """Apply the gradients. In fp16, Paddle's scaler reads one bool from the device: whether they overflowed."""
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.clear_grad()

    def drop(self) -> None:
        """Discard the gradients."""
        self.optimizer.clear_grad()


def running_statistics(model: paddle.nn.Layer) -> list[paddle.Tensor]:
    """The running means and variances of a model (Paddle counts them among the parameters, not the buffers)."""
    return [statistic for layer in _batch_norms(model) for statistic in (layer._mean, layer._variance)]


def _batch_norms(model: paddle.nn.Layer) -> list[Any]:
    return [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.layer.norm._BatchNormBase)]


def refuse_single_values(model: paddle.nn.Layer) -> None:
    """From here on, UserError where batch norm in training sees one value per channel, as after pooling to 1x1.

    Paddle hands such a value on without normalising it, so that training and evaluation compute different networks.
    """
    synchronised = paddle.distributed.get_world_size() > 1
    for layer in _batch_norms(model):
        if not (layer._use_global_stats or (synchronised and isinstance(layer, paddle.nn.SyncBatchNorm))):
            layer.register_forward_pre_hook(_refuse_single_value)


def _refuse_single_value(layer: Any, inputs: Sequence[paddle.Tensor]) -> None:
    channels = layer.weight.shape[0] if layer.weight is not None else inputs[0].shape[1]
    if layer.training and inputs[0].size == channels:
        raise UserError(f'--batch_size 1: expected at least 2, found 1 and a batch norm of {channels} channels behind '
                        f'a pooling to 1x1 ({layer.full_name()}), which has one value per channel then; raise the '
                        'batch size, or set options.freeze_batch_norm=True')


def _with_running_statistics(layer: Any, x: paddle.Tensor) -> paddle.Tensor:
    return paddle.nn.functional.batch_norm(x, layer._mean, layer._variance, layer.weight, layer.bias,
                                           training=layer.training, epsilon=layer._epsilon, use_global_stats=True)


def freeze_batch_norm(model: paddle.nn.Layer) -> None:
    """Normalise with the running statistics in training, too; statistics, scale and bias stay constant."""
    for layer in _batch_norms(model):
        layer._use_global_stats = True
        if issubclass(type(layer), paddle.nn.SyncBatchNorm):  # its forward has no such setting
            layer.forward = functools.partial(_with_running_statistics, layer)
        for parameter in layer.parameters():
            parameter.stop_gradient = True
