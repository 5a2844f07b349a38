"""Activation checkpointing: a segment's activations are dropped after the forward pass and computed again for the
backward pass (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).

Why not Paddle's `fleet.utils.recompute`: its reentrant variant accumulates into the parameters from within the backward
pass, which paddle.DataParallel mistakes for a second gradient when a parameter is used at two scales; its other variant
does not run on a CPU with Paddle 2.6; and both update the running statistics of batch norm twice.

On several GPUs, the second forward pass repeats SyncBatchNorm's collectives within the backward pass, between those of
DataParallel, on the same communicator. NCCL needs their order to be the same on all processes. It is: all are issued by
the one thread that runs the backward pass; Paddle runs the nodes of a graph in an order that follows from the graph
alone, and the graph is the same on all, because no step of the network depends on values; DataParallel starts its
groups of gradients by number, each when its last gradient is there; and paddle.grad, here, ends at a segment's inputs
and parameters without running the hooks of DataParallel, which see a segment's gradients when it is done. With mixed
precision it is the same, as the second pass has the level and dtype of the first.
"""
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.framework import _dygraph_tracer


class Segment(nn.Layer):
    """A layer that runs through `checkpointed` if its `recompute` is set; as a base, before any other layer class."""
    recompute = False

    def __call__(self, *inputs: Any) -> Any:
        return checkpointed(super().__call__, [self], *inputs) if self.recompute else super().__call__(*inputs)


def set_recompute(model: nn.Layer, recompute: bool) -> None:
    """Set `recompute` of all layers that have it: segments, and layers with parts that run as one."""
    for layer in model.sublayers(include_self=True):
        if hasattr(layer, 'recompute'):
            layer.recompute = recompute


def checkpointed(function: Callable[..., Any], layers: Sequence[nn.Layer], *inputs: Any) -> Any:
    """function(*inputs), keeping only the inputs for the backward pass, which runs the function a second time.

    function: tensors or lists of tensors -> tensor or list of tensors. layers: all layers whose parameters or running
    statistics it uses; every trainable parameter of theirs must take part. Running statistics and random numbers are
    those of a single run; gradients differ only by the order of additions. With gradients disabled it is a plain call.
    Cannot be nested or used under paddle.grad, because Paddle does not run paddle.grad inside another one.
    """
    if not paddle.is_grad_enabled():
        return function(*inputs)
    call = _Call(function, layers, inputs)
    # The parameters are inputs as well, so that their gradients pass through the graph, as DataParallel expects.
    outputs = _Recomputed.apply(call, *paddle.utils.flatten(inputs), *call.parameters)
    return paddle.utils.pack_sequence_as(call.result, list(outputs))


class _Call:
    """A call of a function, with the state needed to repeat it: random state, automatic mixed precision."""

    def __init__(self, function: Callable[..., Any], layers: Sequence[nn.Layer], inputs: Any) -> None:
        self._function, self._layers, self._inputs = function, layers, _structure(inputs)
        self._random_state = paddle.get_rng_state()
        tracer = _dygraph_tracer()
        self._auto_cast = {'enable': tracer._amp_level.name != 'O0'}
        if self._auto_cast['enable']:
            self._auto_cast.update(level=tracer._amp_level.name, dtype=tracer._amp_dtype)
        self.parameters = [p for layer in layers for p in layer.parameters() if not p.stop_gradient]
        self.result: Any = None

    def run(self, tensors: Sequence[paddle.Tensor]) -> tuple[paddle.Tensor, ...]:
        """Tensors in, tensors out; `result` is the structure of the function's result."""
        result = self._function(*paddle.utils.pack_sequence_as(self._inputs, list(tensors)))
        self.result = _structure(result)
        return tuple(paddle.utils.flatten(result))

    def repeat(self, tensors: Sequence[paddle.Tensor]) -> tuple[paddle.Tensor, ...]:
        """As `run`, for the backward pass: with a graph, and without changing running statistics or random state."""
        random_state = paddle.get_rng_state()
        paddle.set_rng_state(self._random_state)
        try:
            with paddle.set_grad_enabled(True), paddle.amp.auto_cast(**self._auto_cast), _frozen(self._layers):
                return self.run(tensors)
        finally:
            paddle.set_rng_state(random_state)


class _Recomputed(PyLayer):
    """(what to run, its inputs, its parameters) -> its outputs."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        inputs = tensors[:len(tensors) - len(call.parameters)]
        ctx.call = call
        ctx.save_for_backward(*inputs)
        return call.run(inputs)

    @staticmethod
    def backward(  # type: ignore[override]  # Paddle's stub lacks the None of inputs without gradient
            ctx: Any, *gradients: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        inputs = []
        for tensor in ctx.saved_tensor():
            inputs.append(tensor.detach())
            inputs[-1].stop_gradient = tensor.stop_gradient
        outputs = ctx.call.repeat(inputs)
        sources = [*inputs, *ctx.call.parameters]
        found = iter(paddle.grad(outputs, [x for x in sources if not x.stop_gradient], gradients))
        return tuple(None if x.stop_gradient else next(found) for x in sources)


@contextlib.contextmanager
def _frozen(layers: Sequence[nn.Layer]) -> Iterator[None]:
    """Batch norm in training mode with constant running statistics: with momentum 1 an update keeps the old value."""
    norms = [x for layer in layers for x in layer.sublayers(include_self=True)
             if isinstance(x, (nn.BatchNorm2D, nn.SyncBatchNorm))]
    momenta = [norm._momentum for norm in norms]
    try:
        for norm in norms:
            norm._momentum = 1.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm._momentum = momentum


def _structure(tensors: Any) -> Any:
    return paddle.utils.map_structure(lambda _: None, tensors)
