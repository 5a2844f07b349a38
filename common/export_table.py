"""The formats of export.py, in one table: flags and inference.export read it. No Paddle."""
from typing import NamedTuple

INT8_PACKAGES = ('nncf', 'onnxruntime')  # of requirements-int8.txt
LARGEST_SIDE = 16384  # pixels of an image for which the sizes of the scaled images are held


class Format(NamedTuple):
    """module: has `write(model, settings, metadata, folder)` and `load(folder)`, see inference.export.onnx_file.

    packages: what it needs beside Paddle, and INT8_PACKAGES for int8. precisions: those it can write. classes: the type
    of --output classes, where the input is not the image itself (uint8 then). any_size: whether a file can take images
    of any size.
    """
    module: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...]
    classes: str = 'uint8'
    any_size: bool = True


FORMATS = {
    'onnx': Format('inference.export.onnx_file', ('onnx',), ('fp32', 'fp16', 'int8')),
    'openvino': Format('inference.export.openvino_file', ('onnx', 'openvino'), ('fp32', 'fp16', 'int8')),
    'paddle': Format('inference.export.paddle_file', (), ('fp32',), 'int32'),
    'tflite': Format('inference.export.tflite_file', ('onnx',), ('fp32', 'fp16'), any_size=False),
}
PRECISIONS = tuple(dict.fromkeys(precision for format in FORMATS.values() for precision in format.precisions))
