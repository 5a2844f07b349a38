"""What runs the evaluated network: Paddle, OpenVINO or ONNX Runtime, behind one function `create`."""
import functools
import hashlib
import importlib.util
import inspect
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import paddle

from engine import memory, registry
from engine.files import flush_folder
from engine.flags import PRECISIONS

logger = logging.getLogger(__name__)

# Of ONNX Runtime: the fastest that the installed package offers is taken.
PROVIDERS = ('CUDAExecutionProvider', 'CPUExecutionProvider')
PACKAGES = {'openvino': ('openvino', 'onnx'), 'onnxruntime': ('onnxruntime', 'onnx')}
ENGINE_STRIP = 1 << 14  # pixels of a strip, see models.lean_network; larger ones take more memory


def installed():
    """The backends whose packages are there, the fastest first."""
    return [name for name in ('openvino', 'onnxruntime', 'paddle')
            if all(importlib.util.find_spec(package) for package in PACKAGES.get(name, ()))]


def create(builder, model_path, backend='auto', precision='fp32', cache=True):
    """The network of a config with these weights, ready to evaluate: (1, 3, H, W) float32 tensor -> [logits].

    backend: 'auto' is Paddle on a GPU, and on a CPU the fastest that is installed. precision: of the network; the
    fusion of scales and argmax are float32 always. cache: keep what is converted for OpenVINO and ONNX Runtime in
    `cache_folder`, and look there first.
    Raises ValueError, with one line that names what would work, for a backend that is not installed or fails, and for a
    precision that it or the processor does not have.
    """
    available = installed()
    if backend != 'auto' and backend not in available:
        raise ValueError(f'--backend {backend}: expected one that is installed ({", ".join(available)}), found none of '
                         f'that name; pip install {" ".join(PACKAGES.get(backend, ("-r requirements.txt",)))}')
    model = builder.model
    if not registry.lean.supports(model):
        if backend not in ('auto', 'paddle') or precision != 'fp32':
            raise ValueError(f'--backend {backend} --precision {precision}: expected a MscaleOCRNet on an HRNet, found '
                             f'{type(model).__name__}, which runs with --backend paddle --precision fp32 only')
        return _loaded(model, model_path)
    chosen = backend
    if backend == 'auto':
        chosen = 'paddle' if paddle.get_device() != 'cpu' else available[0]
    if chosen == 'paddle':
        network, device = in_paddle(_loaded(model, model_path), _paddle_dtype(precision)), paddle.get_device()
    else:
        folder, temporary = _converted(model, model_path, cache)
        try:
            scales, needs = model.n_scales, memory.footprint(model)
            del model
            vars(builder).pop('model', None)  # Paddle's copy of the weights, 0.3 GB of W48, is not needed again
            run = ENGINES[chosen](folder, precision)
            device = run.device
            network = Network(EngineParts(run, folder), scales, needs, chosen)
        finally:
            if temporary:
                shutil.rmtree(folder, ignore_errors=True)
    logger.info('network: %s on %s, %s', chosen, device, precision)
    return network


def in_paddle(model, dtype='float32'):
    """The rearranged network of a model (registry.lean.supports it), run by Paddle, with its present weights."""
    return Network(registry.PaddleParts(model, dtype), model.n_scales, memory.footprint(model), 'paddle')


class Network(registry.LeanNetwork):
    """A LeanNetwork that knows what memory it needs."""

    def __init__(self, parts, n_scales, footprint, backend):
        super().__init__(parts, n_scales)
        self.footprint, self.backend, self.largest_strip = footprint, backend, parts.strip
        memory.trim()
        self.base = memory.used()  # once: later, what an image has left behind would count as taken

    def one_scale(self, image, attend):
        memory.trim()  # here it peaks
        return super().one_scale(image, attend)

    def peak(self, size, strip=None):
        """Estimated bytes beyond those of the loaded network, for an image of (H, W)."""
        return self.footprint.peak(size, self.n_scales, strip or self.largest_strip, self.backend)


def _loaded(model, model_path):
    registry.load_weights(model, model_path)
    model.eval()
    return model


def _paddle_dtype(precision):
    if precision == 'fp32':
        return 'float32'
    if paddle.get_device() == 'cpu':
        raise ValueError(f'--precision {precision}: expected fp32 with --backend paddle on a CPU; leave it out, or try '
                         '--backend openvino')
    return {'bf16': 'bfloat16', 'fp16': 'float16'}[precision]


# ---------------------------------------------------------------- conversion, kept in a folder

def cache_folder():
    """Where converted networks are kept: $MSCALE_CACHE, else mscale_ocrnet in the user's cache folder."""
    if chosen := os.environ.get('MSCALE_CACHE'):
        return Path(chosen)
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mscale_ocrnet'


def _converted(model, model_path, cache):
    """(folder with PARTS as .onnx and objects.npz, whether the caller is to delete it)."""
    from engine import onnx_graph
    root = cache_folder() if cache else Path(tempfile.gettempdir())
    folder = root / _key(model, model_path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if cache and _is_whole(folder):
            return folder, False
        partial = Path(tempfile.mkdtemp(dir=root, prefix='.partial-'))
    except OSError as error:
        raise OSError(f'{root}: expected a folder to keep the converted network in, found {error.strerror}; set '
                      'MSCALE_CACHE to another folder, or use --no_cache') from error
    try:
        logger.info('converting %s, once', model_path)
        _loaded(model, model_path)
        for part in onnx_graph.PARTS:
            (partial / f'{part}.onnx').write_bytes(onnx_graph.build(model, part).SerializeToString())
        np.savez(partial / 'objects.npz', **registry.lean.object_weights(
            model.ocrnet.head.spatial_ocr.attention_block))
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        (partial / 'sizes.json').write_text(json.dumps(sizes))
        if not cache:
            return partial, True
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            if not _is_whole(folder):
                raise
            shutil.rmtree(partial, ignore_errors=True)
        flush_folder(root)
        return folder, False
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _key(model, model_path):
    """Name of a folder that changes with the weights, the network, the code that converts, and onnx."""
    import onnx

    from engine import onnx_graph
    registry.check_weights_path(model_path)
    digest = hashlib.sha256()
    with open(model_path, 'rb') as file:
        while block := file.read(1 << 24):
            digest.update(block)
    digest.update(json.dumps([(name, list(p.shape)) for name, p in model.state_dict().items()]).encode())
    digest.update(str(onnx.__version__).encode())
    for module in (onnx_graph, registry.lean):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:32]


def _is_whole(folder):
    try:
        sizes = json.loads((folder / 'sizes.json').read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


# ---------------------------------------------------------------- engines: (part, {input: array}) -> list of arrays

def threads():
    """As many as Paddle was given."""
    return int(paddle.base.core.globals()['FLAGS_paddle_num_threads'])


@functools.cache
def _openvino_core():
    """One for the whole process, never freed: freeing one of several leaves the thread with a stack for signals that is
    gone (2026.4), and the next signal, a child's end or Ctrl-C, is a segmentation fault.
    """
    import openvino
    # What it keeps compiled for shapes that come again; images of many sizes would fill its default of 1024.
    os.environ.setdefault('ONEDNN_PRIMITIVE_CACHE_CAPACITY', '512')
    return openvino.Core()


class OpenVINO:
    """Parts as OpenVINO's compiled models, on the CPU."""

    def __init__(self, folder, precision):
        core = _openvino_core()
        has = {'FP32', *core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')}
        if precision.upper() not in has:
            names = [name for name in PRECISIONS if name.upper() in has]
            raise ValueError(f'--precision {precision}: expected what this processor has ({", ".join(names)}), found '
                             f'{precision}; it would be slower than fp32 here')
        hints = {'INFERENCE_NUM_THREADS': threads(), 'PERFORMANCE_HINT': 'LATENCY',
                 'INFERENCE_PRECISION_HINT': {'fp32': 'f32', 'bf16': 'bf16', 'fp16': 'f16'}[precision],
                 # What it keeps for shapes that may come again takes memory for each image size.
                 'CPU_RUNTIME_CACHE_CAPACITY': 0}
        self._models = {path.stem: core.compile_model(core.read_model(path), 'CPU', hints)
                        for path in folder.glob('*.onnx')}
        self._requests = {}
        self.device = 'CPU'

    def __call__(self, part, inputs):
        if part not in self._requests:
            # One part at a time: a compiled model keeps the buffers of its largest image otherwise.
            for other in self._requests:
                self._models[other].release_memory()
            self._requests = {part: self._models[part].create_infer_request()}
        request = self._requests[part]
        request.infer(inputs, share_inputs=True)
        return [np.array(tensor.data) for tensor in request.output_tensors]


class OnnxRuntime:
    """Parts as ONNX Runtime's sessions, on the CPU."""

    def __init__(self, folder, precision):
        import onnxruntime
        if precision != 'fp32':
            raise ValueError(f'--precision {precision}: expected fp32 with --backend onnxruntime; leave it out, or try '
                             '--backend openvino')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads(), 3
        options.enable_cpu_mem_arena = False  # it never gives back the largest image's memory
        offered = onnxruntime.get_available_providers()
        chosen = [name for name in PROVIDERS if name in offered]
        self._sessions = {path.stem: onnxruntime.InferenceSession(path, options, chosen)
                          for path in folder.glob('*.onnx')}
        # What is offered may lack its driver or libraries; ONNX Runtime then goes on with the next one.
        self.device = next(iter(self._sessions.values())).get_providers()[0]

    def __call__(self, part, inputs):
        return self._sessions[part].run(None, inputs)


ENGINES = {'openvino': OpenVINO, 'onnxruntime': OnnxRuntime}


class EngineParts:
    """As models.lean_network.PaddleParts, by an engine; arrays are NumPy's."""

    def __init__(self, run, folder):
        self.run, self.strip = run, ENGINE_STRIP
        with np.load(folder / 'objects.npz') as arrays:
            self.object_weights = dict(arrays)

    def backbone(self, image):
        return self.run('backbone', {'image': image.numpy()})

    def pixels(self, finest, coarser, enlarge, enlarge_shifted):
        inputs = {'finest': finest, 'enlarge': enlarge, 'enlarge_shifted': enlarge_shifted,
                  **{f'branch_{b}': np.ascontiguousarray(x) for b, x in enumerate(coarser, 1)}}
        pixels, *statistics = self.run('pixels', inputs)
        return pixels, statistics

    def logits(self, pixels, key, context, inside):
        inputs = {'pixels': pixels, 'key': key, 'context': context}
        if inside is None:
            return self.run('logits', inputs)[0], None
        return self.run('logits_and_attention', {**inputs, 'inside': inside})

    def join(self, strips):
        return np.ascontiguousarray(strips[0]) if len(strips) == 1 else np.concatenate(strips, axis=2)

    def zeros(self, x, rows):
        return np.zeros([1, x.shape[1], rows, x.shape[3]], np.float32)
