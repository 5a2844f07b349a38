"""Paddle's operations as nodes of ONNX: {name: function(ops, step, *inputs) -> result}.

Names and attributes are those of Paddle's intermediate representation (paddle/phi/ops/yaml); semantics of ONNX:
https://onnx.ai/onnx/operators. What is not exactly expressed is refused, never approximated.
"""
from typing import Any

import numpy as np

from common.errors import UserError
from inference.paddle_program import Step, type_name
from inference.program_writer import ONNX_TYPES, Handler, Known, ProgramOps, constant

UNARY = {'relu': 'Relu', 'sigmoid': 'Sigmoid', 'tanh': 'Tanh', 'exp': 'Exp', 'log': 'Log', 'sqrt': 'Sqrt', 'abs': 'Abs',
         'floor': 'Floor', 'ceil': 'Ceil', 'erf': 'Erf', 'logical_not': 'Not', 'hardswish': 'HardSwish'}
BINARY = {'add': 'Add', 'subtract': 'Sub', 'multiply': 'Mul', 'divide': 'Div', 'floor_divide': 'Div', 'maximum': 'Max',
          'minimum': 'Min', 'elementwise_pow': 'Pow', 'equal': 'Equal', 'greater_than': 'Greater',
          'greater_equal': 'GreaterOrEqual', 'less_than': 'Less', 'less_equal': 'LessOrEqual', 'logical_and': 'And',
          'logical_or': 'Or', 'matmul': 'MatMul', 'bmm': 'MatMul'}
REDUCTIONS = {'mean': 'ReduceMean', 'sum': 'ReduceSum', 'max': 'ReduceMax', 'min': 'ReduceMin', 'amax': 'ReduceMax',
              'prod': 'ReduceProd'}


def _scalar(value: float, like: str | None) -> np.ndarray:
    return np.array(value, like or 'float32')


def _ints(value: Any) -> list[int]:
    return [int(x) for x in np.ravel(constant(value))]


# ---------------------------------------------------------------- constants and shapes

def _full(ops: ProgramOps, step: Step) -> np.ndarray:
    shape, value = step.attributes['shape'], step.attributes['value']
    return np.full(shape, float(value), type_name(step.attributes['dtype']))


def _full_int_array(ops: ProgramOps, step: Step) -> np.ndarray:
    return np.array(step.attributes['value'], np.int64)


def _full_with_tensor(ops: ProgramOps, step: Step, value: Known, shape: Any) -> str:
    filled = constant(value).reshape(()).astype(step.type)
    return ops.put('Expand', filled, ops.int64(shape))


def _shape(ops: ProgramOps, step: Step, x: Known) -> Known:
    return _cast(ops, step, ops.shape(x))


def _cast(ops: ProgramOps, step: Step, x: Known) -> str:
    kind = step.type
    if kind not in ONNX_TYPES:
        raise UserError(f'it makes {kind}')
    return ops.put('Cast', x, to=ONNX_TYPES[kind])


def _slice(ops: ProgramOps, step: Step, x: Known, starts: Any, ends: Any, *steps: Any) -> Known:
    """Also strided_slice, whose steps are the fifth input."""
    axes = np.array(step.attributes['axes'], np.int64)
    more = [ops.int64(steps[0])] if steps else []
    y = ops.put('Slice', x, ops.int64(starts), ops.int64(ends), axes, *more)
    gone = list(step.attributes.get('decrease_axis') or [])
    return ops.put('Squeeze', y, np.array(gone, np.int64)) if gone else y


def _reshape(ops: ProgramOps, step: Step, x: Known, shape: Any) -> str:
    return ops.put('Reshape', x, ops.int64(shape))


def _flatten(ops: ProgramOps, step: Step, x: Known) -> str:
    start, stop = step.attributes['start_axis'], step.attributes['stop_axis']
    pieces = [ops.shape(x, 0, start)] if start else []
    pieces += [ops.ints(-1)] + ([] if stop == -1 else [ops.shape(x, stop + 1)])
    return ops.put('Reshape', x, ops.put('Concat', *pieces, axis=0))


def _axes(kind: str) -> Handler:
    def handle(ops: ProgramOps, step: Step, x: Known, axes: Any = None) -> str:
        found = step.attributes.get('axis') if axes is None else _ints(axes)
        return ops.put(kind, x, np.atleast_1d(np.array(found, np.int64)))
    return handle


def _stack(ops: ProgramOps, step: Step, xs: list[Known]) -> str:
    axis = np.array([step.attributes['axis']], np.int64)
    return ops.put('Concat', *(ops.put('Unsqueeze', x, axis) for x in xs), axis=int(axis[0]))


def _concat(ops: ProgramOps, step: Step, xs: list[Known], axis: Any = None) -> str:
    return ops.put('Concat', *xs, axis=step.attributes['axis'] if axis is None else _ints(axis)[0])


def _split(ops: ProgramOps, step: Step, x: Known, sections: Any, axis: Any) -> list[str]:
    found = _ints(sections)
    names = ops.put('Split', x, np.array(found, np.int64), outputs=len(found), axis=_ints(axis)[0])
    return names if len(found) > 1 else [names]


def _split_with_num(ops: ProgramOps, step: Step, x: Known, axis: Any) -> list[str]:
    number = step.attributes['num']
    names = ops.put('Split', x, outputs=number, axis=_ints(axis)[0], num_outputs=number)
    return names if number > 1 else [names]


def _expand(ops: ProgramOps, step: Step, x: Known, shape: Any) -> str:
    # -1 keeps a length, which 1 does in ONNX, where the longer of both counts.
    return ops.put('Expand', x, ops.put('Max', ops.int64(shape), np.array([1], np.int64)))


def _tile(ops: ProgramOps, step: Step, x: Known, repeats: Any) -> str:
    rank = step.rank
    assert rank is not None
    repeats = ops.int64(repeats)
    lacking = np.ones(rank, np.int64)  # of the longer of both: the input and repeats may have fewer axes
    x = ops.put('Reshape', x, ops.put('Slice', ops.put('Concat', lacking, ops.shape(x), axis=0), ops.ints(-rank),
                                      ops.ints(2**31 - 1)))
    repeats = ops.put('Slice', ops.put('Concat', lacking, repeats, axis=0), ops.ints(-rank), ops.ints(2**31 - 1))
    return ops.put('Tile', x, repeats)


def _diag(ops: ProgramOps, step: Step, x: Known) -> str:
    """A vector as the diagonal of zeros; not as a product, since the vector may be infinite."""
    if step.attributes.get('offset') or step.attributes.get('padding_value') or step.rank != 2:
        raise UserError('it is more than a diagonal of zeros')
    places = _range(ops, ops.shape(x))
    column, row = ops.put('Unsqueeze', places, ops.ints(1)), ops.put('Unsqueeze', places, ops.ints(0))
    return ops.put('Where', ops.put('Equal', column, row), ops.put('Unsqueeze', x, ops.ints(1)),
                   _scalar(0, step.type))


def _range(ops: ProgramOps, length: Known) -> str:
    """int64 0, 1, ... for a length of shape [1]."""
    return ops.put('Range', np.array(0, np.int64), ops.put('Squeeze', length), np.array(1, np.int64))


def _linspace(ops: ProgramOps, step: Step, start: Known, stop: Known, number: Known) -> str:
    number = ops.put('Reshape', ops.int64(number), ops.ints(-1))
    start, stop = (ops.put('Reshape', value, ops.ints(-1)) for value in (start, stop))
    last = ops.put('Cast', ops.put('Sub', number, ops.ints(1)), to=ONNX_TYPES['float32'])
    steps = ops.put('Cast', _range(ops, number), to=ONNX_TYPES['float32'])
    return ops.put('Add', start, ops.put('Mul', steps, ops.put('Div', ops.put('Sub', stop, start), last)))


def _grid_sample(ops: ProgramOps, step: Step, x: Known, grid: Known) -> str:
    attributes = step.attributes
    if step.rank != 4:
        raise UserError('not of images')
    return ops.put('GridSample', x, grid, mode=attributes['mode'], padding_mode=attributes['padding_mode'],
                   align_corners=int(attributes['align_corners']))


def _pad3d(ops: ProgramOps, step: Step, x: Known, paddings: Any) -> str:
    mode = {'constant': 'constant', 'reflect': 'reflect', 'replicate': 'edge'}.get(step.attributes['mode'])
    if mode is None or step.attributes['data_format'] != 'NCDHW':
        raise UserError(f'{step.attributes["mode"]}, {step.attributes["data_format"]}')
    left, right, top, bottom, front, back = _ints(paddings)
    pads = np.array([0, 0, front, top, left, 0, 0, back, bottom, right], np.int64)
    return ops.put('Pad', x, pads, _scalar(step.attributes['pad_value'], step.type), mode=mode)


# ---------------------------------------------------------------- layers

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
        columns = _windows(ops, ops.shape(x, 3, 4), _last(ops, numbers, 1))
        return ops.put('MatMul', ops.put('MatMul', rows, x), ops.put('Transpose', columns, perm=[1, 0]))
    size = _ints(kernel)
    more: dict[str, Any] = {'count_include_pad': int(not attributes['exclusive'])} if name == 'Average' else {}
    return ops.put(f'{name}Pool', x, kernel_shape=size, strides=list(attributes['strides']),
                   ceil_mode=int(attributes['ceil_mode']), **_padding(step), **more)


def _windows(ops: ProgramOps, length: Known, number: Known) -> str:
    """float32 (number, n): the means of n pixels in windows, of pixels floor(i n / number) to ceil((i + 1) n / number).
    """
    one = ops.ints(1)
    index = ops.put('Unsqueeze', _range(ops, number), one)
    start = ops.put('Div', ops.put('Mul', length, index), number)
    more = ops.put('Add', ops.put('Mul', length, ops.put('Add', index, one)), ops.put('Sub', number, one))
    stop = ops.put('Div', more, number)
    places = _range(ops, length)
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
    shape = ops.put('Concat', ops.shape(x, 0, 2), _last(ops, ops.int64(size), 2), axis=0)
    empty = ops.put('ConstantOfShape', ops.put('ReduceProd', shape, keepdims=1))
    flat = [ops.put('Reshape', value, ops.ints(-1)) for value in (index, x)]
    return ops.put('Reshape', ops.put('ScatterElements', empty, *flat, axis=0), shape)


def _last(ops: ProgramOps, x: Known, number: int) -> str:
    return ops.put('Slice', x, ops.ints(-number), ops.ints(2**31 - 1))


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


# ---------------------------------------------------------------- arithmetic

def _unary(kind: str) -> Handler:
    return lambda ops, step, x: ops.put(kind, x)


def _binary(kind: str) -> Handler:
    return lambda ops, step, x, y: ops.put(kind, x, y)


def _matmul(ops: ProgramOps, step: Step, x: Known, y: Known) -> str:
    rank = step.rank or 0
    swap = [*range(rank - 2), rank - 1, rank - 2]
    for name in ('transpose_x', 'transpose_y'):
        if step.attributes.get(name):
            value = x if name == 'transpose_x' else y
            turned = np.swapaxes(value, -1, -2) if isinstance(value, np.ndarray) else \
                ops.put('Transpose', value, perm=swap)
            x, y = (turned, y) if name == 'transpose_x' else (x, turned)
    return ops.put('MatMul', x, y)


def _reduction(kind: str) -> Handler:
    def handle(ops: ProgramOps, step: Step, x: Known, axis: Any = None) -> str:
        found = _ints(axis) if axis is not None else list(step.attributes.get('axis') or [])
        given = [np.array(found, np.int64)] if found and not step.attributes.get('reduce_all') else []
        return ops.put(kind, x, *given, keepdims=int(step.attributes['keepdim']))
    return handle


def _p_norm(ops: ProgramOps, step: Step, x: Known) -> str:
    attributes = step.attributes
    if attributes['porder'] not in (1, 2) or attributes['asvector']:
        raise UserError(f'of order {attributes["porder"]}')
    return ops.put(f'ReduceL{attributes["porder"]:.0f}', x, ops.ints(attributes['axis']),
                   keepdims=int(attributes['keepdim']))


def _scale(ops: ProgramOps, step: Step, x: Known, factor: Known | None = None) -> Known:
    kind, attributes = step.type, step.attributes
    gain = _scalar(float(attributes['scale'] if factor is None else np.ravel(constant(factor))[0]), kind)
    bias = _scalar(float(attributes['bias']), kind)
    if not attributes['bias_after_scale']:
        x = ops.put('Add', x, bias)
    y = x if gain == 1 else ops.put('Mul', x, gain)
    return ops.put('Add', y, bias) if attributes['bias_after_scale'] and bias != 0 else y


def _pow(ops: ProgramOps, step: Step, x: Known) -> str:
    return ops.put('Pow', x, _scalar(float(step.attributes['y']), step.type))


def _clip(ops: ProgramOps, step: Step, x: Known, low: Any, high: Any) -> str:
    return ops.put('Clip', x, *(_scalar(float(np.ravel(constant(v))[0]), step.type) for v in (low, high)))


def _gelu(ops: ProgramOps, step: Step, x: Known) -> str:
    if step.attributes['approximate']:
        raise UserError('approximate')
    half = ops.put('Mul', x, _scalar(0.5, 'float32'))
    return ops.put('Mul', half, ops.put('Add', _scalar(1, 'float32'), ops.put(
        'Erf', ops.put('Mul', x, _scalar(0.5**0.5, 'float32')))))


def _prelu(ops: ProgramOps, step: Step, x: Known, slope: Known) -> str:
    _channels_first(step)
    found = constant(slope)
    return ops.put('PRelu', x, found if found.size == 1 else found.reshape(-1, *[1] * ((step.rank or 2) - 2)))


def _dropout(ops: ProgramOps, step: Step, x: Known, seed: Any = None, p: Any = None) -> list[Known]:
    mode = step.attributes.get('mode', step.attributes.get('dropout_implementation', 'upscale_in_train'))
    if not step.attributes['is_test'] or mode != 'upscale_in_train':
        raise UserError('it is active in evaluation')
    return [x, '']


OPERATIONS: dict[str, Handler] = {
    **{name: _unary(kind) for name, kind in UNARY.items()}, **{name: _binary(kind) for name, kind in BINARY.items()},
    **{name: _reduction(kind) for name, kind in REDUCTIONS.items()},
    'full': _full, 'full_int_array': _full_int_array, 'full_with_tensor': _full_with_tensor,
    'shape': _shape, 'shape64': _shape, 'cast': _cast, 'slice': _slice, 'strided_slice': _slice, 'reshape': _reshape,
    'flatten': _flatten, 'squeeze': _axes('Squeeze'), 'unsqueeze': _axes('Unsqueeze'), 'stack': _stack,
    'concat': _concat, 'split': _split, 'split_with_num': _split_with_num, 'expand': _expand, 'tile': _tile,
    'diag': _diag, 'pad3d': _pad3d, 'linspace': _linspace, 'grid_sample': _grid_sample,
    'builtin.combine': lambda ops, step, *inputs: list(inputs), 'builtin.split': lambda ops, step, xs: xs,
    'builtin.slice': lambda ops, step, xs: xs[step.attributes['index']],
    'transpose': lambda ops, step, x: ops.put('Transpose', x, perm=list(step.attributes['perm'])),
    'assign': lambda ops, step, x: x,
    'where': lambda ops, step, mask, x, y: ops.put('Where', mask, x, y),
    'not_equal': lambda ops, step, x, y: ops.put('Not', ops.put('Equal', x, y)),
    'conv2d': _conv2d, 'depthwise_conv2d': _conv2d, 'conv2d_transpose': _conv2d_transpose,
    'depthwise_conv2d_transpose': _conv2d_transpose,
    'batch_norm_': _batch_norm, 'batch_norm': _batch_norm, 'layer_norm': _layer_norm, 'group_norm': _group_norm,
    'pool2d': _pool2d, 'max_pool2d_with_index': _max_pool_with_index, 'unpool': _unpool,
    'bilinear_interp': _interpolate, 'nearest_interp': _interpolate, 'linear_interp': _interpolate,
    'bicubic_interp': _interpolate,
    'matmul': _matmul, 'p_norm': _p_norm, 'scale': _scale, 'pow': _pow, 'clip': _clip, 'gelu': _gelu, 'prelu': _prelu,
    'dropout': _dropout,
    'softmax': lambda ops, step, x: ops.put('Softmax', x, axis=step.attributes['axis']),
    'relu6': lambda ops, step, x: ops.put('Clip', x, _scalar(0, 'float32'), _scalar(6, 'float32')),
    'leaky_relu': lambda ops, step, x: ops.put('LeakyRelu', x, alpha=step.attributes['negative_slope']),
    'hardsigmoid': lambda ops, step, x: ops.put('HardSigmoid', x, alpha=step.attributes['slope'],
                                                beta=step.attributes['offset']),
    'silu': lambda ops, step, x: ops.put('Mul', x, ops.put('Sigmoid', x)),
    'swish': lambda ops, step, x: ops.put('Mul', x, ops.put('Sigmoid', x)),
}
