"""The backends for inference, in one table: flags, inference.backends and memory planning read it. No Paddle."""
from typing import NamedTuple


class Backend(NamedTuple):
    """executor: 'module:class', built from a folder of inference.converted and a precision. packages: requirements.

    extra: what the backbone takes relative to its activations. copies: of all weights, made when the first images come.
    Both were fitted to the resident memory that benchmarks/inference.py shows.
    """
    executor: str
    packages: tuple[str, ...]
    extra: float
    copies: int = 0


# The fastest on a CPU first. Paddle runs the model itself, without conversion.
BACKENDS = {
    'openvino': Backend('inference.backends.openvino_backend:OpenVINOExecutor', ('openvino', 'onnx'), 1.25, 2),
    'onnxruntime': Backend('inference.backends.onnxruntime_backend:OnnxRuntimeExecutor', ('onnxruntime', 'onnx'), 1.25),
    'paddle': Backend('inference.backends.paddle_backend:PaddleExecutor', (), 1.6),
}
