"""A Program of Paddle as an ONNX graph, operation by operation; inference.program_operations has the operations."""
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from common.errors import UserError
from inference.onnx_writer import OPSET, OnnxOps
from inference.paddle_program import IMAGE, Program, Step

OUTPUT = 'logits'
ONNX_TYPES = {'float32': onnx.TensorProto.FLOAT, 'float64': onnx.TensorProto.DOUBLE, 'int32': onnx.TensorProto.INT32,
              'int64': onnx.TensorProto.INT64, 'bool': onnx.TensorProto.BOOL}

Known = str | np.ndarray  # the name of a value in the graph, or a constant
Handler = Callable[..., Any]


class ProgramOps(OnnxOps):
    """The nodes of a graph, and constants that get a name where a node reads them."""

    def tensor(self, array: np.ndarray) -> str:
        return super().tensor(array) if array.ndim else self.put('Squeeze', array.reshape(1))

    def name(self, value: Known) -> str:
        return value if isinstance(value, str) else self.weight(np.asarray(value))

    def put(self, kind: str, *inputs: Known, outputs: int = 1, **attributes: Any) -> Any:
        """The name of the output of a node, or the names of several."""
        return self.node(kind, *map(self.name, inputs), outputs=outputs, **attributes)

    def int64(self, value: Known | list[Known]) -> Known:
        """A value as int64, a list of numbers as a vector."""
        if isinstance(value, list):
            pieces = [self.put('Reshape', self.int64(item), self.ints(-1)) for item in value]
            return pieces[0] if len(pieces) == 1 else self.put('Concat', *pieces, axis=0)
        if isinstance(value, np.ndarray):
            return value.astype(np.int64)
        return self.put('Cast', value, to=ONNX_TYPES['int64'])

    def shape(self, x: Known, start: int = 0, stop: int | None = None) -> str:
        return self.put('Shape', x, start=start, **({} if stop is None else {'end': stop}))

    def last(self, x: Known, number: int) -> str:
        """The last elements of a vector."""
        return self.put('Slice', x, self.ints(-number), self.ints(2**31 - 1))

    def range(self, length: Known) -> str:
        """int64 0, 1, ... for a length of shape [1]."""
        return self.put('Range', np.array(0, np.int64), self.put('Squeeze', length), np.array(1, np.int64))


def scalar(value: float, kind: str | None) -> np.ndarray:
    """A constant of a dtype, float32 if there is none."""
    return np.array(value, kind or 'float32')


def integers(value: Any) -> list[int]:
    """A constant as a list."""
    return [int(x) for x in np.ravel(constant(value))]


def constant(value: Any) -> np.ndarray:
    """The value, if it is a constant; UserError otherwise."""
    if not isinstance(value, np.ndarray):
        raise UserError('it computes where others have a constant')
    return value


def write(program: Program, handlers: dict[str, Handler]) -> onnx.ModelProto:
    """The graph of a Program, float32 (1, 3, H, W) 'image' -> (1, K, H, W) 'logits'.

    handlers: {kind of a step: function(ops, step, *inputs) -> its result, or the list of its results}.
    Raises UserError with the name of an operation that is not among them, or in a form that they do not know.
    """
    missing = sorted({step.kind for step in program.steps} - {*handlers, 'parameter', 'builtin.parameter', 'data',
                                                              'feed'})
    if missing:
        raise UserError(f"no translation of Paddle's {', '.join(missing)}")
    ops = ProgramOps()
    values: dict[Any, Any] = {None: None}
    for step in program.steps:
        if step.kind.endswith('parameter'):
            name = step.attributes['parameter_name']
            found: Any = program.parameters[name[0] if isinstance(name, list) else name]
        elif step.kind in ('data', 'feed'):
            found = IMAGE
        else:
            found = _run(handlers[step.kind], ops, step, [values[key] for key in step.inputs])
        results = found if len(step.results) > 1 and isinstance(found, list) else [found]
        values.update(zip(step.results, results))
    ops.nodes.append(helper.make_node('Identity', [ops.name(values[program.output])], [OUTPUT]))
    graph = helper.make_graph(
        ops.nodes, 'network',
        [helper.make_tensor_value_info(IMAGE, onnx.TensorProto.FLOAT, [1, 3, 'H', 'W'])],
        [helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, None)], ops.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=9)


def _run(handler: Handler, ops: ProgramOps, step: Step, inputs: list[Any]) -> Any:
    try:
        return handler(ops, step, *inputs)
    except UserError as error:
        raise UserError(f"no translation of Paddle's {step.kind} in this form: {error}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # attributes of another Paddle
        raise UserError(f"no translation of Paddle's {step.kind} in this form ({type(error).__name__} {error})"
                        ) from error
