"""ONNX Runtime: on a GPU where its package is onnxruntime-gpu and starts there, else on the CPU."""
import contextlib
import ctypes
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from onnx import TensorProto, helper

from common.errors import UserError
from inference import onnx_writer, scale_graph
from inference.backends.engine import EngineExecutor, threads

logger = logging.getLogger(__name__)

CUDA, CPU = 'CUDAExecutionProvider', 'CPUExecutionProvider'
PRECISIONS = {CUDA: ('fp32', 'tf32', 'fp16'), CPU: ('fp32', 'int8')}
SHRINK = 'memory.enable_memory_arena_shrinkage', 'gpu:0'  # after a run, of what the weights do not take
SCARCE = 'Available memory of', 'Failed to allocate memory', 'out of memory'  # in what ONNX Runtime and CUDA say


class OnnxRuntimeExecutor(EngineExecutor):
    """Parts as ONNX Runtime's sessions."""
    name = 'onnxruntime'

    def __init__(self, folder: Path, precision: str) -> None:
        super().__init__(folder)
        import onnxruntime
        self.device, fault = _device()
        _check(precision, self.device, fault)
        self._precision = precision
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads, self._options.log_severity_level = threads(), 3
        self._options.enable_cpu_mem_arena = False  # it never frees the largest image's memory

    @staticmethod
    def takes_half(precision: str) -> bool:
        device, fault = _device()
        _check(precision, device, fault)
        if fault:
            logger.warning('--backend onnxruntime: expected onnxruntime-gpu to start on a GPU, found %s; the network '
                           'runs on the CPU; %s', fault, _remedy(fault))
        return precision == 'fp16'

    def _providers(self) -> list[Any]:
        if self.device == CPU:
            return [CPU]
        return [(CUDA, {
            'use_tf32': str(int(self._precision == 'tf32')),  # its default is yes
            # Its default measures kernels for each size of image, and which one is the fastest varies: so would the
            # last digits. It also takes as much memory as the fastest kernel asks for.
            'cudnn_conv_algo_search': 'HEURISTIC',
            'arena_extend_strategy': 'kSameAsRequested',  # its default takes up to twice of what is needed
            **({} if self.memory_limit is None else {'gpu_mem_limit': str(int(self.memory_limit))})}), CPU]

    def _load(self, path: Path) -> Any:
        import onnxruntime
        with _scarce_memory('the network'):
            return onnxruntime.InferenceSession(path, self._options, self._providers(), enable_fallback=0)

    def run(self, part: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.load(part)
        with _scarce_memory(_named(inputs)):
            return self._loaded[part].run(None, inputs, self._run_options(part))

    def hierarchy(self, image: paddle.Tensor) -> Any:
        if paddle.get_device() != 'cpu':  # Paddle's streams and ONNX Runtime's know nothing of each other
            return super().hierarchy(image)
        self.load(scale_graph.HIERARCHY)
        session, array = self._loaded[scale_graph.HIERARCHY], image.numpy()
        logits = paddle.empty([1, session.get_outputs()[0].shape[1], *image.shape[2:]], 'float32')
        binding = session.io_binding()
        binding.bind_cpu_input(scale_graph.IMAGE, array)
        # Into the tensor: two copies fewer, each of 0.16 GB for 19 classes at 1024x2048.
        binding.bind_output(scale_graph.LOGITS, 'cpu', 0, np.float32, logits.shape, logits.data_ptr())
        with _scarce_memory(_named({scale_graph.IMAGE: array})):
            session.run_with_iobinding(binding, self._run_options(scale_graph.HIERARCHY))
            binding.synchronize_outputs()
        return logits

    def _run_options(self, part: str) -> Any:
        """Each session has memory of its own and keeps it: where it is short, only while it runs."""
        if self.device == CPU or (self.memory_limit is None and part not in onnx_writer.PARTS):
            return None
        import onnxruntime
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(*SHRINK)
        return options


def _check(precision: str, device: str, fault: str) -> None:
    """UserError for a precision that a provider does not have."""
    if precision in PRECISIONS[device]:
        return
    expected = '{} or {}'.format(', '.join(PRECISIONS[device][:-1]), PRECISIONS[device][-1])
    text = f'--precision {precision}: expected {expected} with --backend onnxruntime on a '
    if device == CUDA:
        raise UserError(f'{text}GPU, found {precision}; choose one of them')
    if fault and precision in PRECISIONS[CUDA]:
        raise UserError(f'{text}CPU, found {precision} and onnxruntime-gpu that does not start on a GPU ({fault}); '
                        f'{_remedy(fault)}')
    raise UserError(f'{text}CPU, found {precision}; leave it out, or try --backend openvino' + (
        ', or onnxruntime-gpu on a GPU' if precision in PRECISIONS[CUDA] else ''))


def _device() -> tuple[str, str]:
    """The provider that runs here, and why it is not CUDA; '' as well where the package has no CUDA."""
    import onnxruntime
    if CUDA not in onnxruntime.get_available_providers():
        return CPU, ''
    shape = [1, 1, 1, 1]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in 'xwy']
    graph = helper.make_graph([helper.make_node('Conv', ['x', 'w'], ['y'])], 'probe', values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', onnx_writer.OPSET)], ir_version=9)
    options, one = onnxruntime.SessionOptions(), np.ones(shape, np.float32)
    options.log_severity_level = 4
    onnxruntime.set_default_logger_severity(4)  # what it would say in several lines is said below in one
    try:
        if hasattr(onnxruntime, 'preload_dlls'):  # CUDA and cuDNN as pip installs them
            with contextlib.redirect_stdout(io.StringIO()):  # what it does not find
                onnxruntime.preload_dlls()
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, [CUDA, CPU], enable_fallback=0)
        if session.get_providers()[0] != CUDA:
            return CPU, _library_fault(Path(onnxruntime.__file__).parent / 'capi' / 'libonnxruntime_providers_cuda.so')
        session.run(None, {'x': one, 'w': one})  # cuDNN is loaded by the first convolution
        return CUDA, ''
    except Exception as error:  # classes of ONNX Runtime's own, which derive from RuntimeError or ValueError or neither
        return CPU, _words(error)
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default


def _library_fault(library: Path) -> str:
    """What keeps the provider from being loaded: ONNX Runtime tells its log only."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return 'none of its libraries missing'


def _words(error: Exception) -> str:
    """Of texts with places in the source around: CUDA's own words, or the end."""
    text = ' '.join(str(error).split())
    own = re.search(r'CU[A-Z]+ failure [^;]*[^; ]', text)
    return own.group() if own else text[-200:]


def _remedy(fault: str) -> str:
    if 'no CUDA-capable device' in fault:
        return 'let it see a GPU (CUDA_VISIBLE_DEVICES)'
    if 'driver' in fault or 'libcuda.so' in fault:
        return "install NVIDIA's driver, as new as onnxruntime-gpu"
    return 'pip install "onnxruntime-gpu[cuda,cudnn]"'


def _named(inputs: dict[str, np.ndarray]) -> str:
    image = inputs.get(scale_graph.IMAGE)
    return 'a strip' if image is None else 'an image of {}x{}'.format(*image.shape[2:])


@contextlib.contextmanager
def _scarce_memory(what: str) -> Iterator[None]:
    """UserError, within, where an allocation fails."""
    try:
        yield
    except Exception as error:  # as above
        if not any(text in str(error) for text in SCARCE):
            raise
        raise UserError(f'--backend onnxruntime: expected enough memory for {what}, found too little '
                        f'({_words(error)}); use another --memory_limit, --is_slide with a smaller --crop_size, or, on '
                        'a GPU, --precision fp16') from error
