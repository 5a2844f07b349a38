"""A network as the list of Paddle's operations that its evaluation consists of, traced for images of any size.

The operations are those of Paddle's intermediate representation (PIR), with their names and attributes; Paddle 2.6,
which traces into the older one, has a translation. inference.program_writer turns them into an ONNX graph.
"""
import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle

from common.errors import UserError
from common.paddle2_arithmetic import is_compiled

IMAGE = 'image'  # the name of the input


class Step(NamedTuple):
    """One operation. inputs and results are keys of values, None for an input that is absent.

    kind: its name in Paddle without the dialect, 'conv2d'. type: the dtype of the first result that is read,
    'float32'. rank: the number of its axes. Both are None for a list of tensors.
    """
    kind: str
    attributes: dict[str, Any]
    inputs: list[Any]
    results: list[Any]
    type: str | None
    rank: int | None


class Program(NamedTuple):
    """steps: in order, those that the output depends on. output: its key. parameters: {name: array}."""
    steps: list[Step]
    output: Any
    parameters: dict[str, np.ndarray]


class _Logits(paddle.nn.Layer):
    """The first output alone, float32 (1, 3, H, W) -> float32 (1, K, H, W)."""

    def __init__(self, network: paddle.nn.Layer) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        return self.network(image)[0]


def trace(network: paddle.nn.Layer, size: Sequence[int | None] = (None, None)) -> Program:
    """The Program of a network in evaluation mode; the network is of no use afterwards, Paddle replaces its methods.

    size: (H, W) of the images, None for any. Raises UserError if Paddle cannot trace it.
    """
    for part in network.sublayers(include_self=True):
        if is_compiled(type(part)):
            paddle.jit.not_to_static(type(part).forward)
    layer = _Logits(network)
    layer.eval()
    spec = paddle.static.InputSpec([1, 3, *size], 'float32', name=IMAGE)
    try:
        with _quiet():
            static: Any = paddle.jit.to_static(layer, input_spec=[spec], full_graph=True)
            found, *_ = static.forward.get_concrete_program(spec)
            program = found.main_program
            if hasattr(program, 'desc'):  # Paddle 2.6
                with _static_mode():
                    block = program.global_block()
                    program = paddle.static.normalize_program(
                        program.clone(for_test=True), [block.var(IMAGE)], [block.var(found.outputs[0].name)])
                    program = paddle.pir.translate_to_pir(program.desc)
                parameters = found.parameters
                output = next(op for op in program.global_block().ops if op.name() == 'pd_op.fetch')
                output = output.operands_source()[0]
            else:
                parameters, output = found.parameters[0], found.outputs[0]
    except Exception as error:  # whatever a network's Python does that Paddle's tracer does not know
        raise UserError(f'Paddle cannot trace its Python for images of any size ({type(error).__name__})') from error
    arrays = {parameter.name: parameter.numpy() for parameter in parameters}
    return Program(_needed(program, output), output.id, arrays)


def _needed(program: Any, output: Any) -> list[Step]:
    """The steps that the output depends on: without assertions, and without a head for training."""
    wanted: set[Any] = {output.id}
    found: list[Step] = []
    for op in reversed(program.global_block().ops):
        # Those that nothing reads may have no type (Paddle 2.6), and fail when they are asked for it.
        results = [value for value in op.results() if _key(value) in wanted]
        if not results:
            continue
        inputs = [_key(value) for value in op.operands_source()]
        wanted.update(inputs)
        dense = results[0].is_dense_tensor_type()
        found.append(Step(
            op.name().removeprefix('pd_op.'), op.attrs(), inputs, [_key(value) for value in op.results()],
            type_name(results[0].dtype) if dense else None, len(results[0].shape) if dense else None))
    return found[::-1]


def _key(value: Any) -> Any:
    """What identifies a value; None for an absent one."""
    try:
        return value.id
    except ValueError:
        return None


def type_name(dtype: Any) -> str:
    """'float32' of paddle.float32 and of DataType.FLOAT32."""
    return str(dtype).rpartition('.')[2].lower()


@contextlib.contextmanager
def _static_mode() -> Iterator[None]:
    paddle.enable_static()
    try:
        yield
    finally:
        paddle.disable_static()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the tracer says of PaddleSeg's code."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
