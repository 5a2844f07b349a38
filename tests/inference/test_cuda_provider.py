"""ONNX Runtime's CUDA provider: what it is asked for and what is said, with the CPU's provider in its place.

Everything but the provider runs here: its graphs, in float16 too, its forms, its limits, its refusals.
"""
import ctypes
import logging
import math
import re
from types import SimpleNamespace

import numpy as np
import onnx
import paddle
import pytest

import predict
import val
from common import gpu
from inference import backends, forms, memory, onnx_writer, scale_graph
from inference.predictor import Predictor
from tests import fill, rounding
from tests.built import Built
from tests.conftest import run_script
from tests.inference.test_backends import builder, expected, network, weights  # noqa: F401 (fixtures)
from tools import autolabel

onnxruntime = pytest.importorskip('onnxruntime')
CUDA, CPU = 'CUDAExecutionProvider', 'CPUExecutionProvider'
# 11 bits: of the network's 40 layers each rounds by 2**-12, and errors of random sign add up as the root.
HALF = 40**0.5 * 2.0**-11
SHRINKS = 'memory.enable_memory_arena_shrinkage'


class Pretended:
    """asked: CUDA's options for each session of a file. ran: for each run, what it says of its memory afterwards."""

    def __init__(self):
        self.asked, self.ran, self.fault, self.starts = [], [], None, True

    def session(self, real):
        pretended = self

        class Session(real):
            def __init__(self, model, options, providers, enable_fallback):
                assert enable_fallback == 0, 'it would print, and run on the CPU'
                if isinstance(model, bytes):
                    if isinstance(pretended.fault, Exception):
                        raise pretended.fault
                elif pretended.starts:
                    (name, given), other = providers
                    assert (name, other) == (CUDA, CPU)
                    pretended.asked.append(given)
                else:
                    assert providers == [CPU]
                super().__init__(model, options, [CPU])

            def get_providers(self):
                return [CUDA, CPU] if pretended.starts else [CPU]

            def told(self, options):
                pretended.ran.append(options and options.get_run_config_entry(SHRINKS))
                if pretended.fault:
                    raise RuntimeError(pretended.fault)

            def run(self, names, inputs, options=None):
                if list(inputs) != ['x', 'w']:
                    self.told(options)
                return super().run(names, inputs)

            def run_with_iobinding(self, binding, options=None):
                self.told(options)
                super().run_with_iobinding(binding)

        return Session


@pytest.fixture
def cuda(monkeypatch):
    pretended = Pretended()
    monkeypatch.setattr(onnxruntime, 'InferenceSession', pretended.session(onnxruntime.InferenceSession))
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: ['TensorrtExecutionProvider', CUDA, CPU])
    monkeypatch.setattr(forms, '_measured', None)  # nothing is
    return pretended


OPTIONS = {'use_tf32': '0', 'cudnn_conv_algo_search': 'HEURISTIC', 'arena_extend_strategy': 'kSameAsRequested'}


@pytest.mark.parametrize('cache', [True, False])
@pytest.mark.parametrize('precision', ['fp32', 'tf32', 'fp16'])
def test_all_scales_at_once(builder, weights, cuda, precision, cache, caplog):  # noqa: F811
    with caplog.at_level(logging.INFO):
        run = backends.create(builder, weights, 'onnxruntime', precision, cache)
    assert f'network: onnxruntime on {CUDA}, {precision}' in caplog.text
    assert cuda.asked == [{**OPTIONS, 'use_tf32': str(int(precision == 'tf32'))}]
    predictor, off, equal = Predictor(run), [], []
    for seed, size in enumerate([(64, 96), (75, 106), (33, 201)]):
        x = fill.image(seed, [1, 3, *size])
        (want, condition), found = expected(weights, x), predictor.logits(paddle.to_tensor(x)).numpy()
        assert found.dtype == np.float32 and run.executor.strip == memory.AT_ONCE
        off.append(rounding.error(found, want))
        assert off[-1] < (HALF if precision == 'fp16' else rounding.allowed(condition))
        second, best = np.sort(want, axis=1)[:, -2:].swapaxes(0, 1)
        decided = best - second > 2 * HALF * np.abs(want).max()
        same = found.argmax(1) == want.argmax(1)
        assert same[decided].all() and decided.mean() > 0.9 and len(np.unique(want.argmax(1))) > 1
        equal.append(same.mean())
    print(f'{precision}: off {off}, equal classes {equal}')
    assert (min(off) > 1e-5) == (precision == 'fp16')
    assert np.mean(equal) > (0.995 if precision == 'fp16' else 0.999)  # these weights leave more pixels undecided
    assert cuda.ran == [None] * 3  # the memory is kept for the next image


def test_the_bound_tensor_has_what_the_run_gives(builder, weights, cuda, monkeypatch):  # noqa: F811
    run = backends.create(builder, weights, 'onnxruntime')
    x = paddle.to_tensor(fill.image(1, [1, 3, 75, 106]))
    want = run.executor.run(scale_graph.HIERARCHY, {'image': x.numpy()})[0]
    first = run(x)[0]
    np.testing.assert_array_equal(run(x.flip([3]))[0].shape, first.shape)
    np.testing.assert_array_equal(first.numpy(), want)  # and nothing overwrites it
    monkeypatch.setattr(paddle, 'get_device', lambda: 'gpu:0')  # Paddle's tensors are bound on the CPU only
    monkeypatch.setattr(run.executor._loaded[scale_graph.HIERARCHY], 'io_binding', None)
    np.testing.assert_array_equal(run(x)[0].numpy(), want)


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_each_scale_and_strips(builder, weights, cuda, precision):  # noqa: F811
    run = backends.create(builder, weights, 'onnxruntime', precision)
    x = fill.image(1, [1, 3, 75, 106])
    want, condition = expected(weights, x)
    for strip in (memory.WHOLE, 300):
        cuda.ran.clear()
        run.executor.strip = strip
        found = run(paddle.to_tensor(x))[0].numpy()
        if precision == 'fp16':
            assert 1e-5 < rounding.error(found, want) < HALF
        else:
            rounding.assert_close(found, want, condition)
        assert set(cuda.ran) == ({None} if strip == memory.WHOLE else {'gpu:0'})
    maps = Predictor(run).maps({'img': x[0]})
    np.testing.assert_allclose(sum(maps.attention.values()), 1, atol=1e-5)


def test_what_is_in_16_bits(builder, weights, cuda, tmp_path):  # noqa: F811
    """All convolutions but those of the head's strips; no softmax, no attention and no fusion."""
    backends.create(builder, weights, 'onnxruntime', 'fp16')
    folder, = (tmp_path / 'cache').iterdir()
    assert {path.stem for path in folder.glob('*.onnx')} == {
        *onnx_writer.PARTS, *map(scale_graph.part, (False, True)), scale_graph.HIERARCHY}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for name in ('backbone', 'scale', 'scale_and_attention', 'hierarchy'):
        graph = onnx.shape_inference.infer_shapes(onnx.load(folder / f'{name}.onnx')).graph
        kinds = {value.name: value.type.tensor_type.elem_type for value in [
            *graph.value_info, *graph.input, *graph.output]}
        nodes = [(node.op_type, kinds[node.output[0]]) for node in graph.node]
        assert {kind for name, kind in nodes if name == 'Conv'} == {half}
        assert {kind for name, kind in nodes if name in ('Softmax', 'Sigmoid')} <= {full}
        assert {kinds[value.name] for value in [*graph.input, *graph.output]} == {full}
    # After the last attention: two resizes, two products, a difference and a sum, of three scales.
    last = max(i for i, (name, _) in enumerate(nodes) if name == 'Sigmoid')
    assert {kind for name, kind in nodes[last:] if name in ('Resize', 'Mul', 'Sub', 'Add')} == {full}


def test_float16_takes_a_folder_of_its_own(builder, weights, cuda, tmp_path):  # noqa: F811
    def folders():
        return {path.name: (path / 'weights.bin').stat().st_size for path in (tmp_path / 'cache').iterdir()}

    backends.create(builder, weights, 'onnxruntime', 'tf32')
    first = folders()
    backends.create(builder, weights, 'onnxruntime', 'fp32')
    assert folders() == first and len(first) == 1
    backends.create(builder, weights, 'onnxruntime', 'fp16')
    (other, size), = folders().items() - first.items()
    assert size < 0.7 * first.popitem()[1], 'the strips of the head are float32'
    backends.create(builder, weights, 'onnxruntime', 'fp16')
    assert folders()[other] == size and len(folders()) == 2


CHOOSE = 'expected fp32, tf32 or fp16 with --backend onnxruntime on a GPU, found {0}; choose one of them'
ELSEWHERE = ('expected fp32 or int8 with --backend onnxruntime on a CPU, found {0}; leave it out, or try --backend '
             'openvino')


@pytest.mark.parametrize('precision, starts, text', [
    ('bf16', True, CHOOSE), ('int8', True, CHOOSE), ('bf16', False, ELSEWHERE),
    ('fp16', False, f'{ELSEWHERE}, or onnxruntime-gpu on a GPU'),
    ('tf32', False, f'{ELSEWHERE}, or onnxruntime-gpu on a GPU')])
def test_precisions_that_are_refused(builder, weights, tmp_path, request, precision, starts, text):  # noqa: F811
    if starts:
        request.getfixturevalue('cuda')
    with pytest.raises(ValueError) as refused:
        backends.create(builder, weights, 'onnxruntime', precision)
    assert str(refused.value) == f'--precision {precision}: {text.format(precision)}'
    assert not (tmp_path / 'cache').exists(), 'before anything is converted'


def test_another_network_in_float16(weights, cuda):  # noqa: F811
    class Other(paddle.nn.Layer):
        def forward(self, x):
            return [x]

    with pytest.raises(ValueError, match='--backend onnxruntime --precision fp16: expected a MscaleOCRNet on an HRNet, '
                                         'found Other, which runs with --precision fp32'):
        backends.create(Built(Other()), weights, 'onnxruntime', 'fp16')


def test_without_a_graph_of_all_scales(builder, weights, cuda):  # noqa: F811
    """As PaddleSeg's network, which scales images in its own way."""
    builder.model.scale_image = lambda x, scale: x
    assert backends.create(builder, weights, 'onnxruntime', 'fp16').strips[0] == memory.WHOLE


# -------------------------------- memory

def test_the_memory_limit_is_the_providers(builder, weights, cuda):  # noqa: F811
    run = backends.create(builder, weights, 'onnxruntime', memory_limit=3.5 * 2**30)
    assert cuda.asked == [{**OPTIONS, 'gpu_mem_limit': str(3758096384)}]
    run(paddle.to_tensor(fill.image(1, [1, 3, 64, 96])))
    assert cuda.ran == ['gpu:0']


def test_strips_where_memory_is_short(builder, weights, cuda, monkeypatch, caplog):  # noqa: F811
    run = backends.create(builder, weights, 'onnxruntime')
    assert run.base == run.footprint.weights
    x = paddle.to_tensor(fill.image(1, [1, 3, 96, 128]))
    limit = run.base + run.peak((96, 128), 1 << 14)
    assert limit < run.base + run.peak((96, 128))
    at_once = Predictor(run).logits(x).numpy()
    assert run.executor.strip == memory.AT_ONCE
    found = Predictor(run, memory_limit=limit).logits(x).numpy()
    assert run.executor.strip == 1 << 14
    rounding.assert_close(found, at_once, expected(weights, x.numpy())[1])
    monkeypatch.setattr(gpu, 'total_memory', lambda: limit)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(Predictor(run).logits(x).numpy(), found)
    assert 'images of 96x128 go through strips' in caplog.text


@pytest.mark.parametrize('words', [
    '[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. bfc_arena.cc'
    ':359 Available memory of 1048576 is smaller than requested bytes of 2097152',
    'bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 2097152',
    'cuda_call.cc:123 CUDA failure 2: out of memory ; GPU=0 ; hostname=here ; file=a.cc ; line=1'])
def test_an_image_that_does_not_fit(builder, weights, cuda, words):  # noqa: F811
    run = backends.create(builder, weights, 'onnxruntime')
    cuda.fault = words
    with pytest.raises(ValueError) as refused:
        run(paddle.to_tensor(fill.image(1, [1, 3, 64, 96])))
    line = str(refused.value)
    assert line.startswith('--backend onnxruntime: expected enough memory for an image of 64x96, found too little (')
    assert line.endswith('); use another --memory_limit, --is_slide with a smaller --crop_size, or, on a GPU, '
                         '--precision fp16')
    assert 'hostname' not in line and '\n' not in line
    run.executor.strip = 300
    with pytest.raises(ValueError, match='expected enough memory for an image of'):
        run(paddle.to_tensor(fill.image(1, [1, 3, 64, 96])))
    cuda.fault = 'something else'
    with pytest.raises(RuntimeError, match='something else'):
        run(paddle.to_tensor(fill.image(1, [1, 3, 64, 96])))


def driver(failing=None):
    """libcuda as far as it is used; `failing`: a function that returns an error."""
    def total(size, device):
        size._obj.value = 24 << 30
        return 0

    calls = {'cuInit': lambda flags: 0, 'cuDeviceGet': lambda device, number: 0, 'cuDeviceTotalMem_v2': total}
    return SimpleNamespace(**{**calls, **({failing: lambda *_: 100} if failing else {})})


def test_the_memory_of_a_gpu_is_the_drivers(monkeypatch):
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: {'libcuda.so.1': driver()}[name])
    assert memory.available(CUDA) == 24 << 30
    for failing in ('cuInit', 'cuDeviceGet', 'cuDeviceTotalMem_v2'):
        monkeypatch.setattr(ctypes, 'CDLL', lambda name, failing=failing: driver(failing))
        assert gpu.total_memory() == math.inf


# -------------------------------- a provider that does not start

# As onnxruntime-gpu 1.31.1 says it beside a driver without a GPU, and one that it would say beside an old one.
NO_GPU = ('/src/cuda_call.cc:124 bool onnxruntime::CudaCall(ERRTYPE, bool, const char*) [with ERRTYPE = cudaError] '
          'CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=vm ; file=/src/cuda_execution_'
          'provider.cc ; line=355 ; expr=cudaSetDevice(info_.device_id); \n\n')
OLD = NO_GPU.replace('100: no CUDA-capable device is detected', '35: CUDA driver version is insufficient for CUDA '
                     'runtime version')
LOST = '.*libonnxruntime_providers_cuda.so: cannot open shared object file: No such file or directory'
FAULTS = [(None, LOST, 'pip install "onnxruntime-gpu[cuda,cudnn]"'),
          (RuntimeError(NO_GPU), 'CUDA failure 100: no CUDA-capable device is detected',
           'let it see a GPU (CUDA_VISIBLE_DEVICES)'),
          (RuntimeError(OLD), 'CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version',
           "install NVIDIA's driver, as new as onnxruntime-gpu")]


@pytest.mark.parametrize('fault, reason, remedy', FAULTS, ids=['library', 'no gpu', 'driver'])
def test_a_provider_that_does_not_start(builder, weights, cuda, caplog, capfd, monkeypatch, tmp_path,  # noqa: F811
                                        fault, reason, remedy):
    monkeypatch.setattr(logging, 'raiseExceptions', False)  # of handlers that earlier tests have left, without a file
    cuda.starts, cuda.fault = False, fault
    for precision in ('tf32', 'fp16'):
        with pytest.raises(ValueError) as refused:
            backends.create(builder, weights, 'onnxruntime', precision)
        assert re.fullmatch(f'--precision {precision}: expected fp32 or int8 with --backend onnxruntime on a CPU, '
                            rf'found {precision} and onnxruntime-gpu that does not start on a GPU \({reason}\); '
                            + re.escape(remedy), str(refused.value))
    assert not (tmp_path / 'cache').exists()
    with caplog.at_level(logging.INFO):
        run = backends.create(builder, weights, 'onnxruntime', cache=False)
    warning, = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert re.fullmatch(f'--backend onnxruntime: expected onnxruntime-gpu to start on a GPU, found {reason}; the '
                        'network runs on the CPU; ' + re.escape(remedy), warning)
    assert f'network: onnxruntime on {CPU}, fp32' in caplog.text and run.strips[0] < memory.WHOLE
    said = capfd.readouterr()
    assert (said.out, said.err) == ('', '')


def test_a_missing_library_is_named(cuda, monkeypatch):
    def missing(path):
        assert path.endswith('onnxruntime/capi/libonnxruntime_providers_cuda.so')
        raise OSError('libcuda.so.1: cannot open shared object file: No such file or directory')

    from inference.backends.onnxruntime_backend import OnnxRuntimeExecutor
    cuda.starts = False
    monkeypatch.setattr(ctypes, 'CDLL', missing)
    with pytest.raises(ValueError, match=r"\(libcuda.so.1: cannot .*\); install NVIDIA's driver"):
        OnnxRuntimeExecutor.takes_half('fp16')


# -------------------------------- the scripts

@pytest.mark.parametrize('script', ['val', 'predict', 'autolabel'])
def test_scripts(tiny, toy, cuda, tmp_path, script, capsys):
    images = toy / 'leftImg8bit' / 'val'
    out = ['--save_dir', tmp_path / 'out']
    main, more = {'val': (val.main, []), 'predict': (predict.main, ['--image_path', images, *out]),
                  'autolabel': (autolabel.main, ['--image_dir', images, *out])}[script]
    assert run_script(main, '--config', tiny[0], '--model_path', tiny[1], '--backend', 'onnxruntime', '--precision',
                      'fp16', '--memory_limit', '2', *more) in (None, 0)
    assert cuda.asked[0]['gpu_mem_limit'] == str(2 << 30) and set(cuda.ran) == {'gpu:0'} and len(cuda.ran) >= 3
    assert f'network: onnxruntime on {CUDA}, fp16' in ''.join(capsys.readouterr())
