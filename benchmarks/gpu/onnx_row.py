"""One row with ONNX Runtime: image and classes stay bound to the device."""
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .rows import Row


def load(row: Row, folder: Path, output: str, size: tuple[int, int], cuda: bool, threads: int | None
         ) -> Callable[[np.ndarray], np.ndarray]:
    """A graph of a folder as a function: image uint8 (H, W, 3), uploaded -> its output, downloaded."""
    import onnxruntime
    if not cuda and (row.variant or row.precision == 'tf32'):
        raise SystemExit(f'{row.variant or row.precision} needs --provider cuda')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    providers: list[Any] = ['CPUExecutionProvider']
    if cuda:
        if hasattr(onnxruntime, 'preload_dlls'):  # CUDA and cuDNN as pip installs them
            onnxruntime.preload_dlls()
        providers = [('CUDAExecutionProvider', {
            'use_tf32': str(int(row.precision == 'tf32')), 'enable_cuda_graph': str(int(row.variant == 'cuda graph')),
            'prefer_nhwc': str(int(row.variant == 'nhwc')),
            'arena_extend_strategy': 'kSameAsRequested'})]  # else memory is rounded up to the next power of two
    session = onnxruntime.InferenceSession(str(folder / row.graph(output)), options, providers)
    used = session.get_providers()[0]
    if cuda and used != 'CUDAExecutionProvider':
        raise SystemExit(f'CUDAExecutionProvider did not start, {used} would run: CUDA or cuDNN is missing')
    device = 'cuda' if cuda else 'cpu'
    shape, dtype = session.get_outputs()[0].shape, np.uint8 if output == 'classes' else np.float32
    entry = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros([*size, 3], np.uint8), device, 0)
    result = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input('image', entry)
    binding.bind_ortvalue_output(output, result)

    def run(image: np.ndarray) -> np.ndarray:
        entry.update_inplace(image)
        session.run_with_iobinding(binding)
        return result.numpy()  # waits for the device

    return run


def timed(run: Callable[[np.ndarray], np.ndarray], image: np.ndarray, warm_up: int, rounds: int
          ) -> tuple[list[float], np.ndarray]:
    """Seconds of each round, from an image in memory to a result in memory; and the result."""
    seconds = []
    for number in range(warm_up + rounds):
        start = time.perf_counter()
        result = run(image)
        seconds += [time.perf_counter() - start] if number >= warm_up else []
    return seconds, result
