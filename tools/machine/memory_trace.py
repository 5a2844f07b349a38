"""The memory of a training step on a GPU, predicted on a CPU from the tensors that a step there really allocates.

Paddle counts the bytes of all tensors that exist, on a CPU as well. They are read where a layer has been computed,
forward and back, and at their highest while the losses are: so what a convolution on a CPU needs for itself does not
count, which on a GPU has other needs (tools.machine.cards allows for them). Every tensor's size is proportional to the
crop, or constant; steps at two small sizes therefore tell those at any. Of mixed precision, for which a CPU has no
kernels, the tensors kept for the backward pass are counted in the precision that Paddle's lists give each operator.
"""
from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import paddle

from common.errors import UserError
from inference import memory
from inference.backends.paddle_backend import PaddleExecutor
from inference.whole_network import WholeNetwork
from models import hrnet, layers, mscale_ocrnet, ocr, operations
from tools.machine import networks
from tools.machine.rows import Row, Settings
from training.gradient_step import GradientStep

STEPS = 2  # the first one makes gradients and momentum
RESIZE = layers.resize
OPERATORS = ('add', 'radd', 'sub', 'rsub', 'mul', 'rmul', 'truediv', 'rtruediv', 'matmul')  # of tensors


def check_paddle() -> None:
    """UserError with a Paddle that cannot forget a peak."""
    if not hasattr(paddle.base.core, 'host_memory_stat_reset_peak_value'):
        raise UserError(f'expected Paddle 3, found {paddle.__version__}; install paddlepaddle 3')


def allocated() -> int:
    """Bytes of all tensors that exist on the CPU."""
    return int(paddle.base.core.host_memory_stat_current_value('Allocated', 0))


class Peak:
    """The most bytes that existed during a step of a model, after `start`: in its layers, and in the losses."""

    def __init__(self, model: paddle.nn.Layer) -> None:
        self.network = self.losses = 0
        self._in_losses = False
        for layer in model.sublayers():
            layer.register_forward_post_hook(self._after_layer)
        model.register_forward_pre_hook(self._before_model)
        model.register_forward_post_hook(self._after_model)

    def start(self) -> None:
        self.network, self.losses, self._in_losses = allocated(), 0, False

    def _look(self, gradient: paddle.Tensor | None = None) -> None:
        if self._in_losses:  # the first layer of the backward pass is done, or the next forward pass begins
            self._end_of_losses()
        self.network = max(self.network, allocated())

    def _end_of_losses(self, gradient: paddle.Tensor | None = None) -> None:
        self.losses = max(self.losses, int(paddle.base.core.host_memory_stat_peak_value('Allocated', 0)))
        self._in_losses = False

    def _before_model(self, layer: paddle.nn.Layer, inputs: Any) -> Any:
        self._look()

    def _after_layer(self, layer: paddle.nn.Layer, inputs: Any, outputs: Any) -> Any:
        self._look()
        for x in _tensors(outputs):
            if not x.stop_gradient:
                x.register_hook(self._look)

    def _after_model(self, layer: paddle.nn.Layer, inputs: Any, outputs: Any) -> Any:
        self._look()
        for x in _tensors(outputs):
            if not x.stop_gradient:
                x.register_hook(self._end_of_losses)
        paddle.base.core.host_memory_stat_reset_peak_value('Allocated', 0)
        self._in_losses = True


class Kept:
    """Bytes that a forward pass keeps for the backward pass: `full`, and `mixed` under Paddle's automatic mixed
    precision, without what is the same for every crop, `rounded`: the weights that convolutions have in 16 bits.
    """

    def __init__(self, model: paddle.nn.Layer) -> None:
        from paddle.amp import amp_lists

        names = amp_lists.white_list()['float16']['O1'], amp_lists.black_list()['float16']['O1']
        # Operators are called without the ends of their names in Paddle's lists.
        self._half, self._single = ({name.removesuffix('_v2').removeprefix('reduce_') for name in found}
                                    for found in names)
        self._half.add('cast')  # of dropout's mask, to what it is multiplied with
        self._weights = {p.data_ptr() for p in model.parameters()}
        self._dtypes: dict[int, bool] = {}  # {address: whether 16 bits}
        self._alive: list[Any] = []  # so that no address is taken twice
        self._originals: dict[int, int] = {}  # {address of a copy that float32 does not need: of what it copies}
        self._kept: dict[tuple[int, bool], int] = {}
        self._full: dict[int, int] = {}
        self._halved = False  # the operator that is running
        self._enabled = True
        self.rounded = 0

    @property
    def full(self) -> int:
        return sum(self._full.values())

    @property
    def mixed(self) -> int:
        return sum(self._kept.values())

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is computed in this block."""
        operators = paddle._C_ops
        with contextlib.ExitStack() as stack:
            for name in _operators():
                stack.enter_context(mock.patch.object(operators, name, self._wrapped(name)))
            for name in OPERATORS:
                stack.enter_context(mock.patch.object(paddle.Tensor, f'__{name}__', self._wrapped(
                    name, getattr(paddle.Tensor, f'__{name}__'))))
            stack.enter_context(mock.patch.object(paddle.amp, 'auto_cast', self._auto_cast))
            for module in (layers, hrnet, mscale_ocrnet, ocr, operations):
                for name, function in (('cast', self._cast), ('resize', self._resize)):
                    if hasattr(module, name):
                        stack.enter_context(mock.patch.object(module, name, function))
            stack.enter_context(paddle.autograd.saved_tensors_hooks(self._keep, lambda x: x))
            yield
        self._alive.clear()
        self._dtypes.clear()

    @contextlib.contextmanager
    def _auto_cast(self, enable: bool = True, **settings: Any) -> Iterator[None]:
        before, self._enabled = self._enabled, enable
        yield
        self._enabled = before

    def _wrapped(self, name: str, function: Callable[..., Any] | None = None) -> Callable[..., Any]:
        run = function or getattr(paddle._C_ops, name)

        def wrapped(*args: Any, **settings: Any) -> Any:
            outer = self._halved
            self._halved = self._in_half(name, args)
            result = run(*args, **settings)
            for x in _tensors(result):
                self._mark(x, self._halved)
            self._halved = outer
            return result

        return wrapped

    def _mark(self, x: paddle.Tensor, half: bool) -> paddle.Tensor:
        self._dtypes[x.data_ptr()] = half
        self._alive.append(x)
        return x

    def _is_half(self, x: paddle.Tensor) -> bool:
        return self._dtypes.get(x.data_ptr(), False)

    def _cast(self, x: paddle.Tensor, dtype: paddle.dtype) -> paddle.Tensor:
        """models.layers.cast: to float32, which is another tensor where x has 16 bits; or a bias to the sum's 16."""
        half = x.data_ptr() in self._weights
        if not half and not self._is_half(x):
            return x
        copy = x.clone()
        self._originals[copy.data_ptr()] = x.data_ptr()
        return self._mark(copy, half)

    def _resize(self, x: paddle.Tensor, *args: Any, **settings: Any) -> paddle.Tensor:
        """models.layers.resize, whose result has the dtype of x."""
        return self._mark(RESIZE(x, *args, **settings), self._is_half(x))

    def _in_half(self, name: str, args: Sequence[Any]) -> bool:
        """Whether an operator computes in 16 bits: by Paddle's lists, and else if none of its inputs has 32."""
        if not self._enabled or name in self._single:
            return False
        if name in self._half:
            return True
        inputs = _tensors(args[:1] if name.endswith('batch_norm') else args)  # whose parameters stay as they are
        return bool(inputs) and all(map(self._is_half, inputs))

    def _keep(self, x: paddle.Tensor) -> paddle.Tensor:
        address, size = x.data_ptr(), math.prod(x.shape)
        if address in self._weights:
            self.rounded += 2 * size if self._halved else 0  # anew by every operator
        else:
            self._full[self._originals.get(address, address)] = 4 * size
            self._kept[address, self._halved] = (2 if self._halved else 4) * size
        return x


def _watched(most: list[int], run: Callable[..., Any], *args: Any, **options: Any) -> Any:
    result = run(*args, **options)
    most[0] = max(most[0], allocated())
    return result


def _operators() -> list[str]:
    return [name for name in dir(paddle._C_ops) if not name.startswith('_') and callable(getattr(paddle._C_ops, name))]


def _tensors(values: Any) -> list[paddle.Tensor]:
    if isinstance(values, paddle.Tensor):
        return [values]
    return [x for value in values for x in _tensors(value)] if isinstance(values, (list, tuple)) else []


def step(settings: Settings, recompute: bool) -> Iterator[Row]:
    """Bytes of a training step with one crop of the settings' size, in `data`."""
    check_paddle()
    builder = networks.builder_of(settings, f'model.recompute={recompute}')
    model = builder.model
    model.train()
    batch = networks.batch_of(settings.size, 1, settings.seed)
    run = GradientStep(model, builder.loss, builder.optimizer)
    peak = Peak(model)
    for _ in range(STEPS):
        fixed = allocated()
        peak.start()
        run.backward([batch])
        run.step()
    most = {'fixed': fixed, 'network': peak.network, 'losses': peak.losses}
    kept = Kept(model)  # afterwards: what it counts stays
    if not recompute:
        with kept.counted():
            model(batch['img'])
    yield Row(f'step{" --recompute" * recompute}', data={
        **most, 'kept': kept.full, 'kept_mixed': kept.mixed, 'rounded': kept.rounded})


def inference(settings: Settings) -> Iterator[Row]:
    """Bytes of one image through predict.py's network, each scale at once and in the smallest strips, in `data`."""
    model: Any = networks.builder_of(settings).model
    model.eval()
    network = WholeNetwork(PaddleExecutor(model), model.n_scales, memory.footprint(model), model.scale_image)
    data = {}
    for form, strip in (('peak', memory.WHOLE), ('peak_strips', memory.SMALLEST_STRIP)):
        network.executor.strip = strip
        most = [0]
        with contextlib.ExitStack() as stack:
            for name in _operators():
                watched = functools.partial(_watched, most, getattr(paddle._C_ops, name))
                stack.enter_context(mock.patch.object(paddle._C_ops, name, watched))
            network(paddle.to_tensor(networks.picture(settings.size, settings.seed)))[0].argmax(axis=1)
        data[form] = most[0]
    yield Row('inference', data=data)
