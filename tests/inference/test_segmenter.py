"""Segmenter: the predictor's result from whatever an image comes as, and errors that a program can catch."""
import os
import subprocess
import sys

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image

import inference
from common.errors import UserError
from inference import Segmenter, backends, pictures
from inference.segmenter import Segmentation
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def segment(tiny):
    return Segmenter(*tiny, backend='paddle')


@pytest.fixture(scope='module')
def paths(toy):
    return sorted((toy / 'leftImg8bit/val').rglob('*.png'))


def test_the_result_is_the_predictors(segment, tiny, paths):
    from common.builder import Builder
    from common.config import Config
    from inference.predictor import Predictor

    builder = Builder(Config(str(tiny[0]), [], with_pretrained=False))
    expected = Predictor(backends.create(builder, tiny[1], 'paddle')).maps(builder.val_dataset[0])
    found = segment(paths[0])
    assert isinstance(found, Segmentation) and found.labels.names[0] == 'road'
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_array_equal(found.confidence, expected.confidence)
    np.testing.assert_array_equal(found.entropy, expected.entropy)
    assert list(found.attention) == [0.5, 1.0, 1.5] == segment.scales
    for scale, weight in found.attention.items():
        np.testing.assert_array_equal(weight, expected.attention[scale])
    assert len(np.unique(found.classes)) > 1


def test_every_kind_of_image_gives_the_same(segment, paths):
    rgb = np.asarray(Image.open(paths[0]).convert('RGB'))
    expected = segment(paths[0])
    np.testing.assert_array_equal(expected.image, rgb)
    for image in (str(paths[0]), Image.open(paths[0]), rgb, np.asfortranarray(rgb)):
        found = segment(image)
        np.testing.assert_array_equal(found.confidence, expected.confidence)
        np.testing.assert_array_equal(found.image, rgb)
    grey = segment(Image.open(paths[0]).convert('L'))
    assert grey.image.shape == rgb.shape and (grey.image[..., 0] == grey.image[..., 2]).all()


def test_lists_and_streams_keep_the_order(segment, paths):
    one_by_one = [segment(path).confidence for path in paths]
    assert isinstance(segment(paths), list) and segment([]) == []
    for found in (segment(paths), segment(tuple(map(str, paths))), segment.stream(iter(paths)),
                  segment.stream(paths, num_workers=0)):
        for result, expected in zip(found, one_by_one, strict=True):
            np.testing.assert_array_equal(result.confidence, expected)


def test_a_stream_reads_only_a_few_ahead(segment, paths):
    read = []

    def endless():
        while True:
            read.append(1)
            yield paths[0]

    stream = segment.stream(endless(), num_workers=2)
    next(stream), next(stream)
    assert len(read) <= 5
    stream.close()


def test_overlay_and_notebook_picture(segment, paths):
    found = segment(paths[0])
    expected = pictures.overlay(cv2.imread(str(paths[0])), found.classes, segment.colors)
    np.testing.assert_array_equal(found.overlay()[..., ::-1], expected)
    np.testing.assert_array_equal(found.overlay(1.0), found.image)
    np.testing.assert_array_equal(found.overlay(0.0), segment.colors[found.classes])
    shown = cv2.imdecode(np.frombuffer(found._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(shown, expected)


def test_options_are_those_of_the_flags(tiny, paths):
    flipped = Segmenter(*tiny, backend='paddle', flip_horizontal=True, scales=(1.0, 0.5))
    assert len(flipped.predictor.flips) == 2 and flipped.predictor.scales == [1.0, 0.5]
    other = Segmenter(*tiny, backend='paddle', is_slide=True, crop_size=(64, 32), stride=(48, 24), memory_limit=4,
                      opts=['model.n_scales=[1.0]'], custom_color=list(range(57)))
    assert other.predictor.crop_size == (32, 64) and other.predictor.stride == (24, 48)
    assert other.predictor.memory_limit == 4 * 2**30 and other.scales == [1.0]
    assert other.colors[1].tolist() == [3, 4, 5]
    assert other(paths[0]).classes.shape == (64, 128)


@pytest.mark.parametrize('image,text', [
    (np.zeros([4, 4, 3], np.float32), r'found an array of float32 \(4, 4, 3\); convert it'),
    (np.zeros([4, 4], np.uint8), r'uint8 RGB \(H, W, 3\), found an array of uint8 \(4, 4\)'),
    (np.zeros([0, 4, 3], np.uint8), r'found an array of uint8 \(0, 4, 3\)'),
    (7, 'expected a path, a PIL image or an array of uint8 RGB .*, found int'),
    ('/none.png', '/none.png: expected an image; found nothing there')])
def test_what_is_no_image(segment, image, text):
    with pytest.raises(UserError, match=text):
        segment(image)


@pytest.mark.parametrize('options,text', [
    ({'backend': 'magic'}, '--backend magic: expected one that is installed'),
    ({'scales': (0.0,)}, '--scales: expected numbers above 0'),
    ({'is_slide': True}, '--crop_size: expected width and height'),
    ({'memory_limit': -1}, '--memory_limit: expected gigabytes above 0'),
    ({'custom_color': [1, 2, 3]}, '--custom_color: expected 57 values')])
def test_options_that_make_no_sense(tiny, options, text):
    with pytest.raises(UserError, match=text):
        Segmenter(*tiny, **options)


def test_config_and_weights_that_are_not_there(tiny):
    with pytest.raises(UserError, match='nothing.yml: expected a config file'):
        Segmenter('nothing.yml', tiny[1])
    with pytest.raises(UserError, match='/none.pdparams: expected a weights file'):
        Segmenter(tiny[0], '/none.pdparams')


@pytest.fixture
def broken(tiny, tmp_path):
    """(config, weights) with numbers whose sums are beyond float32. (Weights that hold NaN are not even loaded.)"""
    state = paddle.load(str(tiny[1]))
    state['ocrnet.head.cls_head.weight'] = paddle.full_like(state['ocrnet.head.cls_head.weight'], 3e38)
    paddle.save(state, str(tmp_path / 'broken.pdparams'))
    return tiny[0], tmp_path / 'broken.pdparams'


def test_weights_that_are_not_finite_name_the_image(broken, paths):
    segment = Segmenter(*broken, backend='paddle')
    with pytest.raises(UserError, match=f'{paths[0]}: expected finite logits, found NaN'):
        segment(paths[0])
    with pytest.raises(UserError, match='image 1: expected finite logits'):
        whole, calls = segment.predictor.maps, []
        segment.predictor.maps = lambda sample: calls.append(0) or (whole(sample) if len(calls) > 1 else None)
        segment([np.asarray(Image.open(path)) for path in paths[:2]])


def test_predict_says_it_in_one_line_and_writes_nothing(broken, paths, tmp_path, capsys):
    import predict
    from tests.conftest import run_script as run

    assert run(predict.main, '--config', broken[0], '--model_path', broken[1], '--image_path', paths[0].parent,
               '--save_dir', tmp_path / 'out', '--backend', 'paddle') == 1
    line, = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith(f'error: {paths[0]}: expected finite logits, found NaN or infinity')
    assert not list(tmp_path.rglob('*.png'))


@pytest.mark.slow
@pytest.mark.parametrize('size', [(20, 30000), (30000, 20)])
def test_a_very_long_image(segment, tmp_path, size):
    """Of 600000 pixels, as 640x937; the lowest branch of the half scale is a single pixel high."""
    cv2.imwrite(str(tmp_path / 'long.png'), np.random.default_rng(0).integers(0, 256, [*size, 3], np.uint8))
    found = segment(tmp_path / 'long.png')
    assert found.classes.shape == size and np.isfinite(found.entropy).all()
    np.testing.assert_allclose(sum(found.attention.values()), 1, atol=1e-5)


def test_importing_it_loads_nothing_and_any_directory_will_do(tiny, paths, tmp_path):
    code = ('import sys, os\n'
            'from inference import Segmenter\n'
            'assert not {"paddle", "paddleseg"} & set(sys.modules)\n'
            f'segment = Segmenter({str(tiny[0])!r}, {str(tiny[1])!r}, backend="paddle")\n'
            f'print(segment({str(paths[0])!r}).classes.shape, os.getcwd())\n')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f'(64, 128) {tmp_path}'


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="module 'inference' has no attribute 'Segmentor'"):
        inference.Segmentor  # noqa: B018
