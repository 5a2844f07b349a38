"""Paddle's operations as nodes of ONNX: {name: function(ops, step, *inputs) -> result}.

Names and attributes are those of Paddle's intermediate representation (paddle/phi/ops/yaml); semantics of ONNX:
https://onnx.ai/onnx/operators. What is not exactly expressed is refused, never approximated.
"""
from typing import Any

import numpy as np

from common.errors import UserError
from inference.paddle_program import Step, type_name
from inference.program_layers import LAYERS
from inference.program_writer import ONNX_TYPES, Handler, Known, ProgramOps, constant, integers, scalar

UNARY = {'relu': 'Relu', 'sigmoid': 'Sigmoid', 'tanh': 'Tanh', 'exp': 'Exp', 'log': 'Log', 'sqrt': 'Sqrt', 'abs': 'Abs',
         'floor': 'Floor', 'ceil': 'Ceil', 'erf': 'Erf', 'logical_not': 'Not', 'hardswish': 'HardSwish'}
BINARY = {'add': 'Add', 'subtract': 'Sub', 'multiply': 'Mul', 'divide': 'Div', 'maximum': 'Max',
          'minimum': 'Min', 'elementwise_pow': 'Pow', 'equal': 'Equal', 'greater_than': 'Greater',
          'greater_equal': 'GreaterOrEqual', 'less_than': 'Less', 'less_equal': 'LessOrEqual', 'logical_and': 'And',
          'logical_or': 'Or', 'matmul': 'MatMul', 'bmm': 'MatMul'}
REDUCTIONS = {'mean': 'ReduceMean', 'sum': 'ReduceSum', 'max': 'ReduceMax', 'min': 'ReduceMin', 'amax': 'ReduceMax',
              'prod': 'ReduceProd'}


# ---------------------------------------------------------------- constants and shapes

def _full(ops: ProgramOps, step: Step) -> np.ndarray:
    shape, value = step.attributes['shape'], step.attributes['value']
    return np.full(shape, float(value), type_name(step.attributes['dtype']))


def _full_int_array(ops: ProgramOps, step: Step) -> np.ndarray:
    return np.array(step.attributes['value'], np.int64)


def _full_with_tensor(ops: ProgramOps, step: Step, value: Known, shape: Any) -> str:
    if not isinstance(value, np.ndarray):  # the order of Paddle 2.6
        value, shape = shape, value
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
        found = step.attributes.get('axis') if axes is None else integers(axes)
        return ops.put(kind, x, np.atleast_1d(np.array(found, np.int64)))
    return handle


def _stack(ops: ProgramOps, step: Step, xs: list[Known]) -> str:
    axis = np.array([step.attributes['axis']], np.int64)
    return ops.put('Concat', *(ops.put('Unsqueeze', x, axis) for x in xs), axis=int(axis[0]))


def _concat(ops: ProgramOps, step: Step, xs: list[Known], axis: Any = None) -> str:
    return ops.put('Concat', *xs, axis=step.attributes['axis'] if axis is None else integers(axis)[0])


def _split(ops: ProgramOps, step: Step, x: Known, sections: Any, axis: Any) -> list[str]:
    found = integers(sections)
    names = ops.put('Split', x, np.array(found, np.int64), outputs=len(found), axis=integers(axis)[0])
    return names if len(found) > 1 else [names]


def _split_with_num(ops: ProgramOps, step: Step, x: Known, axis: Any) -> list[str]:
    number = step.attributes['num']
    names = ops.put('Split', x, outputs=number, axis=integers(axis)[0], num_outputs=number)
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
    places = ops.range(ops.shape(x))
    column, row = ops.put('Unsqueeze', places, ops.ints(1)), ops.put('Unsqueeze', places, ops.ints(0))
    return ops.put('Where', ops.put('Equal', column, row), ops.put('Unsqueeze', x, ops.ints(1)),
                   scalar(0, step.type))


def _linspace(ops: ProgramOps, step: Step, start: Known, stop: Known, number: Known) -> str:
    number = ops.put('Reshape', ops.int64(number), ops.ints(-1))
    start, stop = (ops.put('Reshape', value, ops.ints(-1)) for value in (start, stop))
    last = ops.put('Cast', ops.put('Sub', number, ops.ints(1)), to=ONNX_TYPES['float32'])
    steps = ops.put('Cast', ops.range(number), to=ONNX_TYPES['float32'])
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
    left, right, top, bottom, front, back = integers(paddings)
    pads = np.array([0, 0, front, top, left, 0, 0, back, bottom, right], np.int64)
    return ops.put('Pad', x, pads, scalar(step.attributes['pad_value'], step.type), mode=mode)


# ---------------------------------------------------------------- arithmetic

def _unary(kind: str) -> Handler:
    return lambda ops, step, x: ops.put(kind, x)


def _binary(kind: str) -> Handler:
    return lambda ops, step, x, y: ops.put(kind, x, y)


def _floor_divide(ops: ProgramOps, step: Step, x: Known, y: Known) -> str:
    """Towards minus infinity: ONNX divides integers towards 0, and its Mod has the sign of the divisor."""
    if step.type and 'float' in step.type:
        return ops.put('Floor', ops.put('Div', x, y))
    return ops.put('Div', ops.put('Sub', x, ops.put('Mod', x, y)), y)


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
        found = integers(axis) if axis is not None else list(step.attributes.get('axis') or [])
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
    gain = scalar(float(attributes['scale'] if factor is None else np.ravel(constant(factor))[0]), kind)
    bias = scalar(float(attributes['bias']), kind)
    if not attributes['bias_after_scale']:
        x = ops.put('Add', x, bias)
    y = x if gain == 1 else ops.put('Mul', x, gain)
    return ops.put('Add', y, bias) if attributes['bias_after_scale'] and bias != 0 else y


def _pow(ops: ProgramOps, step: Step, x: Known) -> str:
    return ops.put('Pow', x, scalar(float(step.attributes['y']), step.type))


def _clip(ops: ProgramOps, step: Step, x: Known, low: Any, high: Any) -> str:
    return ops.put('Clip', x, *(scalar(float(np.ravel(constant(v))[0]), step.type) for v in (low, high)))


OPERATIONS: dict[str, Handler] = {
    **LAYERS,
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
    'floor_divide': _floor_divide, 'matmul': _matmul, 'p_norm': _p_norm, 'scale': _scale, 'pow': _pow, 'clip': _clip,
    'softmax': lambda ops, step, x: ops.put('Softmax', x, axis=step.attributes['axis']),
}
