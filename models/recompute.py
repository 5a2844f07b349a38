"""Activation checkpointing: a segment's activations are dropped after the forward pass and computed again for the
backward pass (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).

Why not Paddle's `fleet.utils.recompute`: its reentrant kind accumulates into the parameters from within the backward
pass, which paddle.DataParallel mistakes for a second gradient where a parameter serves two scales; its other kind does
not run on the CPU of Paddle 2.6; and both update the running statistics of batch norm twice.
"""
import contextlib

import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.framework import _dygraph_tracer


class Segment:
    """Mixin, in front of nn.Layer, for a layer that can keep nothing but its inputs for the backward pass.

    It does so where `recompute` is set and gradients are enabled, at the cost of a second forward pass. Gradients,
    running statistics and random numbers are those of a layer that keeps everything, bit for bit. Inputs and results
    are tensors or lists of tensors; all parameters must take part. Segments cannot be nested, nor used under
    paddle.grad, which Paddle cannot run inside another paddle.grad.
    """
    recompute = False

    def __call__(self, *inputs):
        if not (self.recompute and paddle.is_grad_enabled()):
            return super().__call__(*inputs)
        segment = _Forward(self, super().__call__, inputs)
        # The parameters are inputs as well: their gradients leave through the graph, where DataParallel expects them.
        outputs = _Recomputed.apply(segment, *paddle.utils.flatten(inputs), *segment.parameters)
        return paddle.utils.pack_sequence_as(segment.result, list(outputs))


def set_recompute(model, recompute):
    """Switch all segments of a model on or off."""
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, Segment):
            layer.recompute = recompute


class _Forward:
    """One forward pass of a layer, and what it takes to repeat it: random state, automatic mixed precision."""

    def __init__(self, layer, function, inputs):
        self._layer, self._function, self._inputs = layer, function, _structure(inputs)
        self._random_state = paddle.get_rng_state()
        tracer = _dygraph_tracer()
        self._auto_cast = {'enable': tracer._amp_level.name != 'O0'}
        if self._auto_cast['enable']:
            self._auto_cast.update(level=tracer._amp_level.name, dtype=tracer._amp_dtype)
        self.parameters = [p for p in layer.parameters() if not p.stop_gradient]
        self.result = None

    def run(self, tensors):
        """Tensors in, tensors out; `result` is the structure the layer gave them."""
        result = self._function(*paddle.utils.pack_sequence_as(self._inputs, list(tensors)))
        self.result = _structure(result)
        return tuple(paddle.utils.flatten(result))

    def repeat(self, tensors):
        """As `run`, for the backward pass: with a graph, and without a trace in statistics or random numbers."""
        random_state = paddle.get_rng_state()
        paddle.set_rng_state(self._random_state)
        try:
            with paddle.set_grad_enabled(True), paddle.amp.auto_cast(**self._auto_cast), frozen_statistics(self._layer):
                return self.run(tensors)
        finally:
            paddle.set_rng_state(random_state)


class _Recomputed(PyLayer):
    """(what to run, its inputs, its parameters) -> its outputs."""

    @staticmethod
    def forward(ctx, segment, *tensors):
        inputs = tensors[:len(tensors) - len(segment.parameters)]
        ctx.segment = segment
        ctx.save_for_backward(*inputs)
        return segment.run(inputs)

    @staticmethod
    def backward(ctx, *gradients):
        inputs = []
        for tensor in ctx.saved_tensor():
            inputs.append(tensor.detach())
            inputs[-1].stop_gradient = tensor.stop_gradient
        outputs = ctx.segment.repeat(inputs)
        sources = [*inputs, *ctx.segment.parameters]
        found = iter(paddle.grad(outputs, [x for x in sources if not x.stop_gradient], gradients))
        return tuple(None if x.stop_gradient else next(found) for x in sources)


@contextlib.contextmanager
def frozen_statistics(layer):
    """Batch norm in training mode, but its running statistics stay: at momentum 1 they are replaced by themselves."""
    norms = [x for x in layer.sublayers(include_self=True) if isinstance(x, (nn.BatchNorm2D, nn.SyncBatchNorm))]
    momenta = [norm._momentum for norm in norms]
    try:
        for norm in norms:
            norm._momentum = 1.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm._momentum = momentum


def _structure(tensors):
    return paddle.utils.map_structure(lambda _: None, tensors)
