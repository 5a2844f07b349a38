"""Paddle's layers as nodes of ONNX: convolutions, normalisation, pooling, interpolation, activations with parameters.

inference.program_operations has the others, and the table of all.
"""
from typing import Any

import numpy as np

from common.errors import UserError
from inference.paddle_program import Step
from inference.program_writer import ONNX_TYPES, Handler, Known, ProgramOps, constant, integers, scalar


def _padding(step: Step) -> dict[str, Any]:
    """pads or auto_pad of a convolution or pooling."""
    kind, given = step.attributes['padding_algorithm'], list(step.attributes['paddings'])
    if kind == 'SAME':
        return {'auto_pad': 'SAME_UPPER'}
    if kind == 'VALID':
        return {'pads': [0] * 4}
    if len(given) == 4:  # top, bottom, left, right
        given = [given[0], given[2], given[1], given[3]]
    return {'pads': given * 2 if len(given) == 2 else given}


def _channels_first(step: Step) -> None:
    if step.attributes.get('data_format', 'NCHW') not in ('NCHW', 'NCW', 'AnyLayout'):
        raise UserError(step.attributes['data_format'])


def _conv2d(ops: ProgramOps, step: Step, x: Known, weight: Known) -> str:
    _channels_first(step)
    # Weights that are computed state no size.
    more: dict[str, Any] = {'kernel_shape': list(weight.shape[2:])} if isinstance(weight, np.ndarray) else {}
    same = step.attributes['padding_algorithm'] == 'SAME'  # where Paddle takes no dilations
    return ops.put('Conv', x, weight, strides=list(step.attributes['strides']), group=step.attributes['groups'],
                   dilations=[1, 1] if same else list(step.attributes['dilations']), **_padding(step), **more)


def _conv2d_transpose(ops: ProgramOps, step: Step, x: Known, weight: Known, size: Any = None) -> str:
    _channels_first(step)
    attributes = step.attributes
    if attributes['padding_algorithm'] != 'EXPLICIT':
        raise UserError(attributes['padding_algorithm'])
    more, strides = list(attributes.get('output_padding') or [0, 0]), list(attributes['strides'])
    given = size is not None and not (isinstance(size, np.ndarray) and size.size == 0)
    if given:  # the rows and columns at the end that a stride leaves open: all of them, then as many as are asked for
        more = [stride - 1 for stride in strides]
    y = ops.put('ConvTranspose', x, weight, strides=strides, group=attributes['groups'], output_padding=more,
                dilations=list(attributes['dilations']), **_padding(step))
    return ops.put('Slice', y, ops.ints(0, 0), ops.int64(size), ops.ints(2, 3)) if given else y


def _batch_norm(ops: ProgramOps, step: Step, x: Known, mean: Known, variance: Known, *scale_bias: Known) -> list[str]:
    _channels_first(step)
    if not step.attributes['is_test'] and not step.attributes['use_global_stats']:
        raise UserError('it normalises by the statistics of its input')
    channels = len(constant(mean))
    scale, bias = (np.full(channels, value, np.float32) if given is None else given
                   for given, value in zip((*scale_bias, None, None), (1, 0)))
    y = ops.put('BatchNormalization', x, scale, bias, mean, variance, epsilon=step.attributes['epsilon'])
    return [y, '', '', '', '', '']


def _layer_norm(ops: ProgramOps, step: Step, x: Known, scale: Known | None = None,
                bias: Known | None = None) -> list[str]:
    axis = step.attributes['begin_norm_axis']
    scale = np.ones(1, np.float32) if scale is None else scale
    given = [scale] if bias is None else [scale, bias]
    if axis != (step.rank or 0) - 1:  # Paddle's are flat
        given = [ops.put('Reshape', value, ops.shape(x, axis)) for value in given]
    return [ops.put('LayerNormalization', x, *given, axis=axis, epsilon=step.attributes['epsilon']), '', '']


def _group_norm(ops: ProgramOps, step: Step, x: Known, scale: Known | None = None,
                bias: Known | None = None) -> list[str]:
    _channels_first(step)
    groups = step.attributes['groups']
    y = ops.put('Reshape', x, np.array([0, groups, -1], np.int64))
    y = ops.put('InstanceNormalization', y, np.ones(groups, np.float32), np.zeros(groups, np.float32),
                epsilon=step.attributes['epsilon'])
    y = ops.put('Reshape', y, ops.shape(x))
    for kind, given in (('Mul', scale), ('Add', bias)):
        y = y if given is None else ops.put(kind, y, constant(given).reshape(1, -1, 1, 1))
    return [y, '', '']


def _pool2d(ops: ProgramOps, step: Step, x: Known, kernel: Any) -> str:
    _channels_first(step)
    attributes = step.attributes
    name = {'avg': 'Average', 'max': 'Max'}[attributes['pooling_type']]
    to_one = attributes['adaptive'] and isinstance(kernel, np.ndarray) and kernel.max() == 1
    if attributes['global_pooling'] or to_one:
        return ops.put(f'Global{name}Pool', x)
    if attributes['adaptive']:
        if name != 'Average':
            raise UserError('the maximum of a number of windows')
        numbers = ops.put('Reshape', ops.int64(kernel), ops.ints(-1))
        rows = _windows(ops, ops.shape(x, 2, 3), ops.put('Slice', numbers, ops.ints(0), ops.ints(1)))
        columns = _windows(ops, ops.shape(x, 3, 4), ops.last(numbers, 1))
        return ops.put('MatMul', ops.put('MatMul', rows, x), ops.put('Transpose', columns, perm=[1, 0]))
    size = integers(kernel)
    more: dict[str, Any] = {'count_include_pad': int(not attributes['exclusive'])} if name == 'Average' else {}
    return ops.put(f'{name}Pool', x, kernel_shape=size, strides=list(attributes['strides']),
                   ceil_mode=int(attributes['ceil_mode']), **_padding(step), **more)


def _windows(ops: ProgramOps, length: Known, number: Known) -> str:
    """float32 (number, n): the means of n pixels in windows, of pixels floor(i n / number) to ceil((i + 1) n / number).
    """
    one = ops.ints(1)
    index = ops.put('Unsqueeze', ops.range(number), one)
    start = ops.put('Div', ops.put('Mul', length, index), number)
    more = ops.put('Add', ops.put('Mul', length, ops.put('Add', index, one)), ops.put('Sub', number, one))
    stop = ops.put('Div', more, number)
    places = ops.range(length)
    inside = ops.put('And', ops.put('GreaterOrEqual', places, start), ops.put('Less', places, stop))
    return ops.put('Div', ops.put('Cast', inside, to=ONNX_TYPES['float32']),
                   ops.put('Cast', ops.put('Sub', stop, start), to=ONNX_TYPES['float32']))


def _max_pool_with_index(ops: ProgramOps, step: Step, x: Known) -> list[str]:
    attributes = step.attributes
    if attributes['global_pooling'] or (attributes['adaptive'] and max(attributes['kernel_size']) == 1):
        return [ops.put('GlobalMaxPool', x), '']
    if attributes['adaptive']:
        raise UserError('the maximum of a number of windows')
    return ops.put('MaxPool', x, outputs=2, kernel_shape=list(attributes['kernel_size']),
                   strides=list(attributes['strides']), pads=list(attributes['paddings']) * 2,
                   ceil_mode=int(attributes.get('ceil_mode', False)))


def _unpool(ops: ProgramOps, step: Step, x: Known, index: Known, size: Any = None) -> str:
    """Values at the places of max_pool2d_with_index; ONNX counts them through all channels, Paddle within each."""
    if size is None:
        raise UserError('without a size')
    shape = ops.put('Concat', ops.shape(x, 0, 2), ops.last(ops.int64(size), 2), axis=0)
    empty = ops.put('ConstantOfShape', ops.put('ReduceProd', shape, keepdims=1))
    flat = [ops.put('Reshape', value, ops.ints(-1)) for value in (index, x)]
    return ops.put('Reshape', ops.put('ScatterElements', empty, *flat, axis=0), shape)


def _interpolate(ops: ProgramOps, step: Step, x: Known, size: Any = None, sizes: Any = None, scales: Any = None) -> str:
    attributes = step.attributes
    _channels_first(step)
    method, corners = attributes['interp_method'], attributes['align_corners']
    place = 'align_corners' if corners else 'asymmetric' if attributes['align_mode'] == 1 else 'half_pixel'
    mode, rounding = method, 'round_prefer_floor'
    if method == 'nearest':
        place, rounding = ('align_corners', 'round_prefer_ceil') if corners else ('asymmetric', 'floor')
    elif method in ('bilinear', 'linear'):
        mode = 'linear'
    elif method == 'bicubic':
        mode, place = 'cubic', 'align_corners' if corners else 'half_pixel'
    options = {'mode': mode, 'coordinate_transformation_mode': place, 'nearest_mode': rounding}
    # A linear one of (N, C, W) as one of (N, C, 1, W), which every backend has.
    flat = step.rank == 3
    y = ops.put('Unsqueeze', x, ops.ints(2)) if flat else x
    given = sizes if sizes is not None else size
    if given is None and scales is None and attributes['scale']:
        factors = [float(f) for f in attributes['scale']]
        factors = factors * 2 if len(factors) == 1 and not flat else factors
        found = ops.put('Resize', y, '', np.array([1, 1, *([1] if flat else []), *factors], np.float32), **options)
    else:
        if given is None:
            given = np.array([v for k, v in (('out_h', attributes['out_h']), ('out_w', attributes['out_w']))
                              if v > 0 and not (flat and k == 'out_h')], np.int64)
        if scales is not None or (isinstance(given, np.ndarray) and given.size == 0):
            raise UserError('its size is computed from a scale')
        target = ops.put('Reshape', ops.int64(given), ops.ints(-1))
        pieces = [ops.shape(y, 0, 2), *([ops.ints(1)] if flat else []), target]
        found = ops.put('Resize', y, '', '', ops.put('Concat', *pieces, axis=0), **options)
    return ops.put('Squeeze', found, ops.ints(2)) if flat else found


def _gelu(ops: ProgramOps, step: Step, x: Known) -> str:
    if step.attributes['approximate']:
        raise UserError('approximate')
    half = ops.put('Mul', x, scalar(0.5, 'float32'))
    return ops.put('Mul', half, ops.put('Add', scalar(1, 'float32'), ops.put(
        'Erf', ops.put('Mul', x, scalar(0.5**0.5, 'float32')))))


def _prelu(ops: ProgramOps, step: Step, x: Known, slope: Known) -> str:
    _channels_first(step)
    found = constant(slope)
    return ops.put('PRelu', x, found if found.size == 1 else found.reshape(-1, *[1] * ((step.rank or 2) - 2)))


def _dropout(ops: ProgramOps, step: Step, x: Known, seed: Any = None, p: Any = None) -> list[Known]:
    mode = step.attributes.get('mode', step.attributes.get('dropout_implementation', 'upscale_in_train'))
    if not step.attributes['is_test'] or mode != 'upscale_in_train':
        raise UserError('it is active in evaluation')
    return [x, '']


LAYERS: dict[str, Handler] = {
    'conv2d': _conv2d, 'depthwise_conv2d': _conv2d, 'conv2d_transpose': _conv2d_transpose,
    'depthwise_conv2d_transpose': _conv2d_transpose,
    'batch_norm_': _batch_norm, 'batch_norm': _batch_norm, 'layer_norm': _layer_norm, 'group_norm': _group_norm,
    'pool2d': _pool2d, 'max_pool2d_with_index': _max_pool_with_index, 'unpool': _unpool,
    'bilinear_interp': _interpolate, 'nearest_interp': _interpolate, 'linear_interp': _interpolate,
    'bicubic_interp': _interpolate,
    'gelu': _gelu, 'prelu': _prelu, 'dropout': _dropout,
    'relu6': lambda ops, step, x: ops.put('Clip', x, scalar(0, 'float32'), scalar(6, 'float32')),
    'leaky_relu': lambda ops, step, x: ops.put('LeakyRelu', x, alpha=step.attributes['negative_slope']),
    'hardsigmoid': lambda ops, step, x: ops.put('HardSigmoid', x, alpha=step.attributes['slope'],
                                                beta=step.attributes['offset']),
    'silu': lambda ops, step, x: ops.put('Mul', x, ops.put('Sigmoid', x)),
    'swish': lambda ops, step, x: ops.put('Mul', x, ops.put('Sigmoid', x)),
}
