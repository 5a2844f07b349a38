"""model.tflite, for TensorFlow Lite (LiteRT), converted by onnx2tf from the graph of model.onnx; of a fixed size."""
import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_io import write_atomically
from common.errors import UserError
from inference.backends.engine import threads
from inference.export import onnx_graph
from inference.export.whole import Settings
from models.mscale_ocrnet import MscaleOCRNet

MODEL = 'model.tflite'
METADATA = 'mscale_ocrnet'  # the entry of the file's metadata, JSON
SMALL = 1024  # bytes of a constant that is not worth halving
PACKAGES = ('onnx2tf', 'sng4onnx', 'onnxruntime', 'ai_edge_litert')


def write(model: MscaleOCRNet, settings: Settings, metadata: Mapping[str, str], folder: Path) -> dict[str, str]:
    """As inference.export.onnx_file. fp16: of the weights in the file; the runtime computes in float32."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'--format tflite: expected the package {missing[0]}, found none; pip install --no-deps '
                        '--ignore-requires-python -r requirements-tflite.txt')
    graph = onnx_graph.build(model, dataclasses.replace(settings, precision='fp32'), metadata)
    with tempfile.TemporaryDirectory(dir=folder.resolve()) as scratch:  # the converter starts there
        source = Path(scratch) / 'model.onnx'
        source.write_bytes(graph.SerializeToString())
        del graph
        # The image as it is: onnx2tf would move the last axis of (H, W, 3). Without onnxsim, which may not be there.
        command = [sys.executable, '-m', 'onnx2tf', '-i', str(source), '-o', scratch, '-kat', 'image', '-nuo', '-n',
                   '-v', 'error']
        run = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
        converted = Path(scratch) / 'model_float32.tflite'
        if run.returncode or not converted.is_file():
            lines = run.stderr.strip().splitlines() or run.stdout.strip().splitlines() or ['']
            last = re.sub('\x1b.*?m', '', lines[-1])[-300:]  # without colours
            raise UserError(f'--format tflite: expected onnx2tf to convert the network, found status {run.returncode}: '
                            f'{last}; use --format onnx, and report it')
        write_atomically(folder / MODEL, _finished(converted.read_bytes(), metadata, settings.precision == 'fp16'))
    return {'model': MODEL, 'params': MODEL}


def load(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The file as a function of the input, run by LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / MODEL), num_threads=threads())
    interpreter.allocate_tensors()
    entry, result = interpreter.get_input_details()[0]['index'], interpreter.get_output_details()[0]['index']

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(entry, image)
        interpreter.invoke()
        return interpreter.get_tensor(result)

    return run


def _finished(content: bytes, metadata: Mapping[str, str], half: bool) -> bytes:
    """The converter's file with metadata, every weight once, where it has one for each scale; half: in float16."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    share_buffers(model)
    if half:
        for part in model.subgraphs:
            halve_weights(model, part)
    text, entry = schema.BufferT(), schema.MetadataT()
    text.data = np.frombuffer(json.dumps(dict(metadata)).encode(), np.uint8)
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers, model.metadata = [*model.buffers, text], [*(model.metadata or ()), entry]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b'TFL3')
    return bytes(builder.Output())


def share_buffers(model: Any) -> None:
    """Tensors of equal content read one buffer."""
    buffers: list[Any] = []
    moved: list[int] = []
    places: dict[bytes, int] = {}
    for buffer in model.buffers:
        data = b'' if buffer.data is None else buffer.data.tobytes()
        place = places.get(data, len(buffers)) if data else len(buffers)  # an empty one is that of a computed tensor
        if place == len(buffers):
            buffers.append(buffer)
            places[data] = place
        moved.append(place)
    model.buffers = buffers
    for owner in [*(tensor for part in model.subgraphs for tensor in part.tensors), *(model.metadata or ())]:
        owner.buffer = moved[owner.buffer]


def halve_weights(model: Any, part: Any) -> None:
    """Large float32 constants stored as float16, and made float32 by DEQUANTIZE, which LiteRT runs once, at its start.

    The converter's own float16 file computes in float16, which LiteRT does not do on a CPU.
    """
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 3  # the first that takes float16
    large = {i for i, buffer in enumerate(model.buffers) if buffer.data is not None and len(buffer.data) > SMALL}
    operators: list[Any] = []
    stored: list[Any] = []
    for index, tensor in enumerate(part.tensors):
        if tensor.type == schema.TensorType.FLOAT32 and tensor.buffer in large:
            half, step = schema.TensorT(), schema.OperatorT()
            half.name, half.shape, half.type = tensor.name + b'_half', tensor.shape, schema.TensorType.FLOAT16
            half.buffer, tensor.buffer = tensor.buffer, 0
            step.opcodeIndex = len(model.operatorCodes)
            step.inputs, step.outputs = [len(part.tensors) + len(stored)], [index]
            stored.append(half)
            operators.append(step)
    for place in {half.buffer for half in stored}:
        with np.errstate(over='ignore'):  # the check of the file finds what is not finite
            model.buffers[place].data = model.buffers[place].data.view(np.float32).astype(np.float16).view(np.uint8)
    model.operatorCodes = [*model.operatorCodes, code]
    part.tensors, part.operators = [*part.tensors, *stored], [*operators, *part.operators]
