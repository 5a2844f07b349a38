"""Logits and gradients of the network: this device against one thread of the CPU, recomputation against none."""
from collections.abc import Iterator

import numpy as np
import paddle

from tools.machine import networks
from tools.machine.loss_checks import losses as loss_rows
from tools.machine.rows import FAILED, Row, Settings, judged, one_line
from training.gradient_step import DTYPES, GradientStep


def kernels(settings: Settings) -> Iterator[Row]:
    """A convolution on every device that there is: whether this build has code for it."""
    devices = [f'gpu:{i}' for i in range(settings.gpus)] if settings.device == 'gpu' else ['cpu']
    x, weight = np.ones([1, 8, 16, 16], np.float32), np.ones([4, 8, 3, 3], np.float32)
    for device in devices:
        paddle.set_device(device)
        y = paddle.nn.functional.conv2d(paddle.to_tensor(x), paddle.to_tensor(weight))
        networks.wait()
        found = float(y.mean())
        yield judged(f'a convolution on {device}', found == 72, '72', f'{found:g}')
    paddle.set_device(devices[0])


def kernels_and_losses(settings: Settings) -> Iterator[Row]:
    """What everything else is made of."""
    yield from kernels(settings)
    yield from loss_rows(settings)


def set_threads(count: int) -> None:
    """Threads of the CPU's kernels."""
    paddle.base.core.set_num_threads(count)
    paddle.set_flags({'FLAGS_paddle_num_threads': count})


def training_gradient(settings: Settings, model: paddle.nn.Layer, losses: dict, batch: dict,
                      precision: str = 'fp32') -> tuple[float, np.ndarray]:
    """(loss, gradients of all parameters) of a batch on the current device."""
    model.train()
    optimizer = paddle.optimizer.SGD(0.0, parameters=model.parameters())
    paddle.seed(settings.seed)
    step = GradientStep(model, losses, optimizer, precision)
    loss = float(step.backward([batch])[1][0])
    gradient = networks.gradient_of(model) / (float(step.scaler.state_dict()['scale'][0]) if step.scaler else 1)
    step.drop()
    return loss, gradient


def network(settings: Settings, precisions: tuple[str, ...] = ('fp32',)) -> Iterator[Row]:
    """Logits and gradients in each precision, against fp32 with one thread of the CPU."""
    device, cores = paddle.get_device(), int(paddle.base.core.globals()['FLAGS_paddle_num_threads'])
    size = settings.small
    where = 'against the CPU' if settings.device == 'gpu' else 'against one thread'
    paddle.set_device('cpu')
    if settings.device == 'cpu':
        set_threads(1)
    builder = networks.builder_of(settings, 'model.dropout=0.0', f'model.n_scales={[0.5, 1.0]}')
    model, losses = builder.model, builder.loss
    networks.fit_statistics(model, size, settings.seed)
    weights, image = networks.arrays(model), networks.picture(size, settings.seed + 1)
    images, labels = networks.pictures(size, 2, settings.seed), networks.labels_in_blocks(size, 2, settings.seed)

    def logits(x: np.ndarray) -> np.ndarray:
        model.eval()
        return networks.outputs_of(model, x)

    def gradient(x: np.ndarray, precision: str = 'fp32') -> np.ndarray:
        batch = {'img': paddle.to_tensor(x), 'label': paddle.to_tensor(labels)}
        return training_gradient(settings, model, losses, batch, precision)[1]

    plain_logits = logits(image)
    of_logits = networks.conditions(logits, model, image, plain_logits, None, precisions)
    plain_gradient = gradient(images)  # after the logits, because training moves batch norm's statistics
    of_gradient = networks.conditions(gradient, model, images, plain_gradient, networks.in_norm, precisions)
    set_threads(cores)
    paddle.set_device(device)
    model = networks.builder_of(settings, 'model.dropout=0.0', f'model.n_scales={[0.5, 1.0]}').model
    for precision in precisions:
        model.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})
        kind = precision if precision in DTYPES else 'fp32'
        with paddle.amp.auto_cast(enable=kind != 'fp32', level='O1', dtype=DTYPES.get(kind, 'float16')):
            found = logits(image)
        yield _row(f'logits, {precision}, {where}', networks.of_logits(precision)(found, plain_logits),
                   of_logits[precision], precision)
        yield _row(f'gradients, {precision}, {where}', networks.in_norm(gradient(images, kind), plain_gradient),
                   of_gradient[precision], precision)
    if 'fp32' in precisions:
        yield _recomputed(settings, weights, images, labels, gradient(images), of_gradient['fp32'])


def tensor_cores(settings: Settings) -> Iterator[Row]:
    """What train.py computes in on a GPU: fp32 with TF32 where the card has it, fp16, bf16; each on its own."""
    for precision in ('tf32', 'fp16', 'bf16'):
        try:
            yield from network(settings, (precision,))
        except Exception as error:
            yield Row(f'logits and gradients, {precision}', status=FAILED, reason=one_line(error))


def _row(name: str, off: float, condition: float, precision: str) -> Row:
    limit = networks.allowed(condition, precision)
    return judged(name, off <= limit, f'off by at most {limit:.0e}', f'off by {off:.0e}',
                  data={'off': off, 'allowed': limit, 'condition': condition})


def _recomputed(settings: Settings, weights: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray,
                plain: np.ndarray, condition: float) -> Row:
    builder = networks.builder_of(settings, 'model.dropout=0.0', 'model.recompute=True')
    builder.model.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})
    batch = {'img': paddle.to_tensor(images), 'label': paddle.to_tensor(labels)}
    _, found = training_gradient(settings, builder.model, builder.loss, batch)
    return _row('gradients with --recompute, against without', networks.in_norm(found, plain), condition, 'fp32')
