"""Forms of a network in OpenVINO and ONNX Runtime: the same logits, and the choice of the fastest."""
import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import onnx
import paddle
import pytest
from onnx import numpy_helper

from common.errors import UserError
from inference import backends, forms, memory, onnx_writer, scale_graph
from inference.predictor import Predictor
from inference.shared_weights import SharedWeights
from tests import fill, rounding
from tests.inference.test_backends import ENGINES, builder, expected, network, weights  # noqa: F401 (fixtures)

CONVERTED = ENGINES[1:]
NAMES = (forms.STRIPS, forms.PLAIN, forms.AT_ONCE)
FIRST = {forms.STRIPS: 1 << 14, forms.PLAIN: memory.WHOLE, forms.AT_ONCE: memory.AT_ONCE}  # of the strips
GRAPHS = {forms.STRIPS: set(onnx_writer.PARTS), forms.PLAIN: {'scale', 'scale_and_attention'},
          forms.AT_ONCE: {'hierarchy'}}


def fastest(monkeypatch, name, seconds=1.0):
    """Have a form measured as the fastest."""
    measured = []
    monkeypatch.setattr(forms, '_measured', lambda network, precision: measured.append(precision) or {
        other: seconds if other == name else 2.0 for other in NAMES})
    return measured


@pytest.mark.parametrize('backend', CONVERTED)
@pytest.mark.parametrize('form', NAMES)
def test_logits_are_those_of_the_plain_network_for_any_size(builder, weights, backend, form, monkeypatch):  # noqa: F811
    fastest(monkeypatch, form)
    run = backends.create(builder, weights, backend)
    assert run.strips[0] == FIRST[form]
    ran = []
    monkeypatch.setattr(run.executor, 'load', lambda part, load=run.executor.load: (ran.append(part), load(part)))
    for seed, size in enumerate([(64, 96), (75, 106), (33, 201)]):
        x = fill.image(seed, [1, 3, *size])
        (want, condition), found = expected(weights, x), run(paddle.to_tensor(x))[0].numpy()
        assert found.shape == want.shape and found.dtype == np.float32
        rounding.assert_close(found, want, condition)
    assert set(ran) == GRAPHS[form]


@pytest.mark.parametrize('backend', CONVERTED)
def test_measured_once_and_kept(builder, weights, backend, caplog, monkeypatch):  # noqa: F811
    measured = []
    monkeypatch.setattr(forms, '_measured', lambda *args, measure=forms._measured: (
        measured.append(1), measure(*args))[1])
    with caplog.at_level(logging.INFO):
        first, second = (backends.create(builder, weights, backend) for _ in range(2))
    assert len(measured) == 1 and type(first) is type(second)
    lines = [line for line in caplog.messages if line.startswith('form of the network: ')]
    assert len(lines) == 2 and lines[0] == lines[1]
    assert all(f'{name} ' in lines[0] for name in NAMES)


def test_a_form_with_other_logits_is_left_out(builder, weights, monkeypatch, caplog):  # noqa: F811
    from inference.backends.openvino_backend import OpenVINOExecutor

    def wrong(executor, part, inputs, infer=OpenVINOExecutor._infer):
        found = infer(executor, part, inputs)
        return [x[:, :, :, ::-1] if part.startswith(('scale', 'hierarchy')) else x for x in found]

    monkeypatch.setattr(OpenVINOExecutor, '_infer', wrong)
    with caplog.at_level(logging.INFO):
        found = backends.create(builder, weights, 'openvino')
    for name in (forms.PLAIN, forms.AT_ONCE):
        assert f'form of the network: {name} is left out: its logits are not those of strips' in caplog.messages
    assert found.strips[0] < memory.WHOLE


def test_other_threads_measure_anew(builder, weights, monkeypatch):  # noqa: F811
    measured = fastest(monkeypatch, 'plain')
    backends.create(builder, weights, 'openvino')
    monkeypatch.setattr(forms, 'threads', lambda: 77)
    backends.create(builder, weights, 'openvino')
    assert len(measured) == 2


def test_a_damaged_file_of_times_is_measured_again(builder, weights, tmp_path, monkeypatch):  # noqa: F811
    measured = fastest(monkeypatch, 'plain')
    backends.create(builder, weights, 'openvino')
    path, = (tmp_path / 'cache').glob('*/*.times')
    path.write_text('{"strips": 1')
    backends.create(builder, weights, 'openvino')
    assert len(measured) == 2 and json.loads(path.read_text())['plain'] == 1.0


@pytest.mark.parametrize('name,seconds,chosen', [('plain', 1.0, 'plain'), ('plain', 1.79, 'plain'),
                                                 ('plain', 1.85, forms.STRIPS), (forms.AT_ONCE, 1.79, forms.AT_ONCE),
                                                 (forms.AT_ONCE, 1.85, forms.STRIPS),
                                                 (forms.STRIPS, 1.0, forms.STRIPS)])
def test_more_memory_has_to_save_time(builder, weights, monkeypatch, name, seconds, chosen):  # noqa: F811
    fastest(monkeypatch, name, seconds)
    found = backends.create(builder, weights, 'openvino')
    assert found.strips[0] == FIRST[chosen]


def test_all_scales_at_once_in_float32_only(builder, weights, monkeypatch):  # noqa: F811
    """Elsewhere an engine would round the fusion of scales, too."""
    offered = []
    monkeypatch.setattr(forms, '_measured', lambda network, precision: offered.append(network.strips[0]) or {
        forms.STRIPS: 2.0, forms.PLAIN: 1.0})
    backends.create(builder, weights, 'openvino')
    assert offered == [memory.AT_ONCE]
    try:
        backends.create(builder, weights, 'openvino', 'bf16')
    except UserError as error:
        pytest.skip(str(error))
    assert offered == [memory.AT_ONCE, memory.WHOLE]


@pytest.mark.parametrize('backend', CONVERTED)
def test_other_scales_are_another_graph(builder, weights, backend, monkeypatch):  # noqa: F811
    x = fill.image(1, [1, 3, 64, 96])

    def logits(scales, form):
        builder.model.n_scales = scales
        fastest(monkeypatch, form)
        for path in Path(os.environ['MSCALE_CACHE']).glob('*/*.times'):
            path.unlink()
        return backends.create(builder, weights, backend)(paddle.to_tensor(x))[0].numpy()

    at_once, strips = ([logits(scales, form) for scales in ([0.5, 1.0, 2.0], [1.0])]
                       for form in (forms.AT_ONCE, forms.STRIPS))
    condition = expected(weights, x)[1]
    for found, want in zip(at_once, strips):
        rounding.assert_close(found, want, condition)
    assert rounding.error(at_once[0], at_once[1]) > 0.01


def test_weights_of_the_scales_where_all_run_at_once(builder, weights, monkeypatch):  # noqa: F811
    """The graph has no such output: each scale runs by itself then."""
    fastest(monkeypatch, forms.AT_ONCE)
    run = backends.create(builder, weights, 'openvino')
    sample = {'img': fill.image(1, [1, 3, 64, 96])[0]}
    predict = Predictor(run)
    maps = predict.maps(sample)
    assert run.executor.strip == memory.WHOLE and set(maps.attention) == set(run.n_scales)
    np.testing.assert_array_equal(maps.classes, predict(sample))
    assert run.executor.strip == memory.AT_ONCE
    np.testing.assert_allclose(sum(maps.attention.values()), 1, atol=1e-5)


@pytest.mark.parametrize('reason', ['no cache', 'read only'])
def test_strips_where_nothing_is_measured(builder, weights, monkeypatch, reason):  # noqa: F811
    monkeypatch.setattr(forms, '_measured', None)
    if reason == 'read only':
        def refuse(*_):
            raise OSError(30, 'Read-only file system')
        monkeypatch.setattr(forms, '_kept', refuse)
    assert backends.create(builder, weights, 'openvino', cache=reason != 'no cache').strips[0] < memory.WHOLE


def test_strips_where_memory_is_short(builder, weights, monkeypatch, caplog):  # noqa: F811
    fastest(monkeypatch, 'plain')
    run = backends.create(builder, weights, 'openvino')
    run.base, x = 0, paddle.to_tensor(fill.image(1, [1, 3, 96, 128]))
    limit = run.peak((96, 128), 1 << 14)
    assert limit < run.peak((96, 128))
    logits = {}
    for name, options in (('whole', {}), ('strips', {'memory_limit': limit})):
        logits[name] = Predictor(run, **options).logits(x).numpy()
        assert (run.executor.strip == memory.WHOLE) == (name == 'whole')
    rounding.assert_close(logits['strips'], logits['whole'], expected(weights, x.numpy())[1])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        monkeypatch.setattr(memory, 'available', lambda device: limit)
        np.testing.assert_array_equal(Predictor(run).logits(x).numpy(), logits['strips'])
    line, = caplog.messages
    assert re.fullmatch(r'images of 96x128 go through strips: at once they need \d\.\d GB, \d\.\d GB are there', line)


def test_shared_weights(tmp_path):
    """Every array once; what is read from the files is what was in the graphs."""
    model = network()
    fill.weights(model)
    model.eval()
    graphs = {attend: scale_graph.build(model, attend) for attend in (False, True)}
    arrays = {attend: [numpy_helper.to_array(array) for array in graph.graph.initializer]
              for attend, graph in graphs.items()}
    with SharedWeights(tmp_path) as shared:
        for attend, graph in graphs.items():
            (tmp_path / f'{attend}.onnx').write_bytes(shared.move(graph).SerializeToString())
    large = {array.tobytes() for found in arrays.values() for array in found if array.nbytes >= 1024}
    size = (tmp_path / 'weights.bin').stat().st_size
    assert sum(map(len, large)) <= size < sum(map(len, large)) + 4096 * len(large)
    for attend, want in arrays.items():
        found = [numpy_helper.to_array(array) for array in onnx.load(tmp_path / f'{attend}.onnx').graph.initializer]
        assert len(found) == len(want) and all(np.array_equal(a, b) for a, b in zip(found, want))


def test_what_openvino_compiled_is_kept_and_made_anew_where_it_is_damaged(builder, weights, monkeypatch,  # noqa: F811
                                                                          tmp_path):
    fastest(monkeypatch, forms.AT_ONCE)
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'kept'))
    x = paddle.to_tensor(fill.image(1, [1, 3, 65, 97]))
    expected = backends.create(builder, weights, 'openvino')(x)[0].numpy()
    kept, = (tmp_path / 'kept').rglob('openvino-*/*.blob')
    first, whole = kept.stat().st_mtime_ns, kept.read_bytes()
    np.testing.assert_array_equal(backends.create(builder, weights, 'openvino')(x)[0].numpy(), expected)
    assert kept.stat().st_mtime_ns == first  # read
    for length in (0, 100, len(whole) // 2):
        kept.unlink()  # it can be read only
        kept.write_bytes(whole[:length])
        np.testing.assert_array_equal(backends.create(builder, weights, 'openvino')(x)[0].numpy(), expected)
        assert kept.stat().st_size > 0.9 * len(whole)  # it differs by a few operations each time


def test_nothing_compiled_is_kept_with_no_cache(builder, weights, monkeypatch, tmp_path):  # noqa: F811
    from inference.backends.openvino_backend import OpenVINOExecutor
    properties = []
    monkeypatch.setattr(OpenVINOExecutor, '_load_hierarchy', lambda self, hints: properties.append(self.keep))
    monkeypatch.setattr(forms, 'choose', lambda *args: forms.AT_ONCE)
    for cache in (False, True):
        backends.create(builder, weights, 'openvino', cache=cache)
    assert properties == [False, True]
