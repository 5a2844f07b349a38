"""OpenVINO on the CPU."""
import functools
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from common.errors import UserError
from common.flags import PRECISIONS
from common.processor import processor
from inference import onnx_writer, scale_graph
from inference.backends.engine import EngineExecutor, threads
from inference.converted import key_of

# Values of oneDNN's variable that hide the instructions for 16 bits from its kernels, but not from OpenVINO, whose
# graphs then fail or do nothing.
WITHOUT_HALF = ('SSE41', 'AVX', 'AVX2', 'AVX2_VNNI', 'AVX512_CORE', 'AVX512_CORE_VNNI')


class OpenVINOExecutor(EngineExecutor):
    """Parts as OpenVINO's compiled models."""
    name = 'openvino'

    def __init__(self, folder: Path, precision: str) -> None:
        super().__init__(folder)
        core = shared_core()
        has = {'FP32', *core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')}
        if os.environ.get('ONEDNN_MAX_CPU_ISA', '').upper() in WITHOUT_HALF:
            has -= {'BF16', 'FP16'}
        # In int8, graphs with 8-bit convolutions compute the rest in float32: OpenVINO 2026.4 refuses bfloat16 there.
        self._beside_int8 = 'bf16' if 'BF16' in has else 'f32'
        self._precision = precision
        name = {'fp32': 'f32', 'bf16': 'bf16', 'fp16': 'f16', 'int8': 'f32'}[precision]
        if precision.upper() not in has:
            names = [name for name in PRECISIONS if name.upper() in has]
            raise UserError(f'--precision {precision}: expected what this processor has ({", ".join(names)}), found '
                            f'{precision}; it would be slower than fp32 here')
        self._hints = {'INFERENCE_NUM_THREADS': threads(), 'PERFORMANCE_HINT': 'LATENCY',
                       'INFERENCE_PRECISION_HINT': name,
                       # No cache for recurring shapes: it takes memory for each image size.
                       'CPU_RUNTIME_CACHE_CAPACITY': 0}
        self._requests: dict[str, Any] = {}
        self._lanes: Any = None
        self._lane, self._lock = threading.local(), threading.Lock()

    def _load(self, path: Path) -> Any:
        if path.stem == scale_graph.HIERARCHY:
            return self._load_hierarchy(self._hints)
        core, hints = shared_core(), self._hints
        if self._precision == 'int8' and path.stem in onnx_writer.PARTS[1:]:
            hints = {**hints, 'INFERENCE_PRECISION_HINT': self._beside_int8}
        return core.compile_model(core.read_model(path), 'CPU', hints)

    def _load_hierarchy(self, hints: Mapping[str, Any]) -> Any:
        """The compiled graph is kept, for this processor: 8 seconds of 18000 operations become 3, at each start, for
        1.03 of the weights' size on disk. OpenVINO compiles anew what it finds damaged.
        """
        core, folder = shared_core(), {}
        if self.keep and os.access(self._folder, os.W_OK):
            folder = {'CACHE_DIR': str(self._folder / f'openvino-{key_of(processor())[:8]}')}
        return core.compile_model(core.read_model(self._folder / f'{scale_graph.HIERARCHY}.onnx'), 'CPU',
                                  {**hints, **folder})

    def unload(self) -> None:
        self._requests.clear()
        super().unload()

    def run(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return list(map(np.array, self._infer(part, inputs)))

    def hierarchy(self, image: paddle.Tensor) -> paddle.Tensor:
        logits, = self._infer(scale_graph.HIERARCHY, {scale_graph.IMAGE: image.numpy()})
        return paddle.to_tensor(logits)  # the only copy: 0.16 GB of 19 classes at 1024x2048

    def beside(self, image: paddle.Tensor, lanes: int) -> paddle.Tensor:
        """As `hierarchy`, for as many threads at once as there are lanes; each image has its share of the threads."""
        with self._lock:
            if self._lanes is None:
                self._lanes = self._load_hierarchy({**self._hints, 'PERFORMANCE_HINT': 'THROUGHPUT',
                                                    'NUM_STREAMS': lanes})
        if not hasattr(self._lane, 'request'):
            self._lane.request = self._lanes.create_infer_request()
        self._lane.request.infer({scale_graph.IMAGE: image.numpy()}, share_inputs=True)
        return paddle.to_tensor(self._lane.request.output_tensors[0].data)

    def _infer(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of a part, views that the next call overwrites."""
        self.load(part)
        if part not in self._requests:
            # One part at a time: a compiled model keeps the buffers of its largest image otherwise. Where a scale runs
            # at once it keeps them: the system takes seconds to give out gigabytes again, for each scale of each
            # image.
            scales = set(map(scale_graph.part, (False, True)))
            for other in list(self._requests):
                if not {part, other} <= scales:
                    self._loaded[other].release_memory()
                    del self._requests[other]
            self._requests[part] = self._loaded[part].create_infer_request()
        request = self._requests[part]
        request.infer(inputs, share_inputs=True)
        return [tensor.data for tensor in request.output_tensors]


@functools.cache
def shared_core() -> Any:
    """One for the whole process, never freed: freeing one of several leaves the thread with a freed signal stack
    (OpenVINO 2026.4), and the next signal, such as Ctrl-C or the end of a child process, crashes the process.
    """
    import openvino
    # Number of compiled kernels kept for shapes that recur; images of many sizes would fill the default of 1024.
    os.environ.setdefault('ONEDNN_PRIMITIVE_CACHE_CAPACITY', '512')
    return openvino.Core()
