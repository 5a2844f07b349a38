"""deploy/python/segment.py and the program of deploy/cpp: the same flags, files, pixels and errors; and predict.py's.

The C++ program is built here. It needs cmake, a C++ compiler, OpenCV's headers, and ONNX Runtime's in the folder that
the variable ONNXRUNTIME_ROOT names, or installed; .ci/run provides them.
"""
import importlib.util
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.conftest import PATIENCE, ROOT, run_script
from tests.deploy import stand_in

pytestmark = pytest.mark.skipif(importlib.util.find_spec('onnxruntime') is None, reason='no onnxruntime')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The C++ program, built without warnings."""
    for name in ('cmake', 'c++'):
        if shutil.which(name) is None:
            pytest.skip(f'no {name}')
    folder = tmp_path_factory.mktemp('built')
    root = os.environ.get('ONNXRUNTIME_ROOT', '')
    found = subprocess.run(['cmake', '-S', ROOT / 'deploy/cpp', '-B', folder, f'-DONNXRUNTIME_ROOT={root}',
                            '-DCMAKE_CXX_FLAGS=-Werror'], capture_output=True, text=True, timeout=PATIENCE)
    if found.returncode:
        for missing, text in (("ONNX Runtime's headers (ONNXRUNTIME_ROOT)", 'ONNX Runtime: expected'),
                              ("OpenCV's headers", 'OpenCVConfig.cmake')):
            if text in ' '.join(found.stderr.split()):
                pytest.skip(f'no {missing}')
        pytest.fail(found.stderr)
    done = subprocess.run(['cmake', '--build', folder], capture_output=True, text=True, timeout=PATIENCE)
    assert not done.returncode, done.stdout + done.stderr
    return [folder / 'segment']


@pytest.fixture(params=['python', 'cpp'])
def program(request):
    """Runs the program with arguments, away from the repository: (status, output)."""
    # Neither the repository's folder nor a Paddle that happens to be installed is there for the Python program.
    start = 'import runpy, sys; sys.modules["paddle"] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], ' \
            'run_name="__main__")'
    command = request.getfixturevalue('built') if request.param == 'cpp' else \
        [sys.executable, '-I', '-c', start, ROOT / 'deploy/python/segment.py']

    def run(*arguments, cwd=None):
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE,
                              cwd=cwd or '/')
        assert not done.stdout and 'Traceback' not in done.stderr, done.stderr
        return done.returncode, done.stderr

    return run


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, [37, 52, 3], np.uint8)


def read(folder, name):
    """(train ids, palette, overlay BGR) of an image."""
    with Image.open(folder / f'pseudo_color_prediction/{name}.png') as picture:
        assert picture.mode == 'P'
        ids, palette = np.array(picture), np.array(picture.getpalette()).reshape(-1, 3)
    return ids, palette, cv2.imread(str(folder / f'added_prediction/{name}.png'))


@pytest.mark.parametrize('variant', [{}, {'output': 'logits'}, {'size': (37, 52)}, {'preprocessing': False},
                                     {'preprocessing': False, 'output': 'logits', 'size': (37, 52)}], ids=str)
def test_every_kind_of_export(program, tmp_path, image, variant):
    cv2.imwrite(str(tmp_path / 'street.png'), image)
    model = stand_in.write(tmp_path / 'model.onnx', **variant)
    status, text = program('--model', model, '--image_path', tmp_path / 'street.png', '--save_dir', tmp_path / 'out')
    assert status == 0 and 'segmented 1 of 1 images' in text
    ids, palette, overlay = read(tmp_path / 'out', 'street')
    expected = stand_in.classes_of(image)
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(palette[:4], stand_in.PALETTE)
    mixed = 0.6 * image + 0.4 * np.array(stand_in.PALETTE)[expected][..., ::-1]
    assert np.abs(overlay - mixed).max() <= 0.5 + 1e-4  # rounded


def test_a_folder(program, tmp_path, image):
    """Recursively; images of one stem keep their suffix; earlier predictions are no images; a broken file is named."""
    grey, source = image[..., 0], tmp_path / 'images'
    (source / 'deep/er').mkdir(parents=True)
    alpha = np.dstack([image, grey])
    for name, content in (('a.png', image), ('a.BMP', image), ('deep/er/b.png', grey), ('deep/c.png', alpha),
                          ('deep/d.jpg', image), ('e.tiff', image.astype(np.uint16) * 257)):
        suffix = os.path.splitext(name)[1].lower()
        (source / name).write_bytes(cv2.imencode(suffix, content)[1].tobytes())
    (source / 'bad.png').write_bytes(b'no picture')
    (source / 'empty.jpg').write_bytes(b'')
    (source / 'notes.txt').write_text('nothing')
    (source / 'out/added_prediction').mkdir(parents=True)
    cv2.imwrite(str(source / 'out/added_prediction/old.png'), image)
    model = stand_in.write(tmp_path / 'model.onnx')
    status, text = program('--model', model, '--image_path', 'images', '--save_dir', 'images/out', cwd=tmp_path)
    assert status == 1 and '8 of 8 images' in text and 'segmented 6 of 8 images; pictures in images/out' in text
    for name in ('bad.png', 'empty.jpg'):
        assert f'error: images/{name}: expected an image, found none that can be decoded' in text
    written = {p.relative_to(source / 'out/pseudo_color_prediction').as_posix()
               for p in (source / 'out/pseudo_color_prediction').rglob('*') if p.is_file()}
    assert written == {'a.png.png', 'a.BMP.png', 'deep/er/b.png', 'deep/c.png', 'deep/d.png', 'e.png'}
    for name, content in (('a.png', image), ('a.BMP', image), ('deep/er/b', np.dstack([grey] * 3)),
                          ('deep/c', image), ('e', image)):
        np.testing.assert_array_equal(read(source / 'out', name)[0], stand_in.classes_of(content))
    # OpenCV's decoders of two versions may differ by a level.
    decoded = stand_in.classes_of(cv2.imread(str(source / 'deep/d.jpg')))
    assert (read(source / 'out', 'deep/d')[0] != decoded).mean() < 0.05


def test_an_image_turned_by_its_camera(program, tmp_path, image):
    """EXIF's orientation is followed, as predict.py does."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(np.full([24, 40, 3], (255, 0, 0), np.uint8)).save(tmp_path / 'turned.jpg', exif=exif)
    model = stand_in.write(tmp_path / 'model.onnx')
    status, _ = program('--model', model, '--image_path', tmp_path / 'turned.jpg', '--save_dir', tmp_path / 'out')
    assert status == 0 and read(tmp_path / 'out', 'turned')[0].shape == (40, 24)


def test_an_image_of_another_size(program, tmp_path, image):
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    for preprocessing in (True, False):
        model = stand_in.write(tmp_path / 'model.onnx', preprocessing=preprocessing, size=(37, 64))
        status, text = program('--model', model, '--image_path', tmp_path / 'a.png', '--save_dir', tmp_path / 'out')
        assert status == 1 and (f'error: {tmp_path}/a.png: expected an image of 37x64 (H x W) for this model, found '
                                '37x52; resize it, or export with --input_shape any') in text
    assert not (tmp_path / 'out').exists()


def test_errors_are_one_line(program, tmp_path, image):
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    model, bad = stand_in.write(tmp_path / 'model.onnx'), tmp_path / 'bad.onnx'
    bad.write_bytes(b'no model')
    plain = stand_in.write(tmp_path / 'plain.onnx', metadata=False)
    empty = tmp_path / 'empty'
    empty.mkdir()
    street = ('--image_path', tmp_path / 'a.png')
    for arguments, expected in (
            (('--model', bad, *street), f'--model {bad}: expected a model.onnx of export.py, found: '),
            (('--model', empty / 'x', *street), f'--model {empty}/x: expected a model.onnx of export.py, found: '),
            (('--model', plain, *street),
             f'--model {plain}: expected the metadata of export.py, found none; export it again'),
            (('--model', model, '--image_path', empty), f'--image_path {empty}: expected an image, or a folder with'),
            (('--model', model, '--image_path', empty / 'x'), f'--image_path {empty}/x: expected an image, or a'),
            (('--model', model, *street, '--provider', 'cuda'), '--provider cuda: expected'),
            (('--model', model, *street, '--provider', 'tensorrt'), '--provider tensorrt: expected')):
        status, text = program(*arguments, '--save_dir', tmp_path / 'out')
        assert status == 1 and text.startswith(f'error: {expected}') and text.count('\n') == 1, text
    for wrong in (('--model', model), ('--model', model, *street, '--provider', 'fast'),
                  ('--model', model, *street, '--wrong', '1'), ('--model', model, *street, '--save_dir')):
        status, text = program(*wrong)
        assert status in (1, 2) and 'error: ' in text.splitlines()[-1]
    assert not (tmp_path / 'out').exists()


def test_a_folder_that_cannot_be_written(program, tmp_path, image):
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    model = stand_in.write(tmp_path / 'model.onnx')
    (tmp_path / 'file').write_text('in the way')
    status, text = program('--model', model, '--image_path', tmp_path / 'a.png', '--save_dir', tmp_path / 'file')
    assert status == 1 and f'error: {tmp_path}/a.png: ' in text and 'segmented 0 of 1' in text
    assert (tmp_path / 'file').read_text() == 'in the way'


@pytest.fixture(scope='module')
def predicted(toy, tmp_path_factory):
    """(exports by name, folder of toy images, predict.py's results) of a very small network."""
    import paddle

    import export
    import predict
    from common.builder import Builder
    from common.config import Config
    from tests import fill
    from tests.conftest import write_tiny_config

    folder = tmp_path_factory.mktemp('predicted')
    config = write_tiny_config(folder / 'tiny.yml', toy)
    weights = folder / 'model/model.pdparams'
    model = Builder(Config(config, [], with_pretrained=False)).model
    fill.weights(model)
    paddle.save(model.state_dict(), str(weights))
    images, common = toy / 'leftImg8bit/val', ('--config', config, '--model_path', weights)
    assert not run_script(predict.main, *common, '--image_path', images, '--save_dir', folder / 'expected')
    exports = {}
    for name, flags in (('image', ['--with_preprocessing']), ('fixed', ['--input_shape', 64, 128])):
        assert not run_script(export.main, *common, '--save_dir', folder / name, *flags)
        exports[name] = folder / name / 'model.onnx'
    return exports, images, folder / 'expected'


@pytest.mark.parametrize('name', ['image', 'fixed'])
def test_pixels_are_those_of_predict(program, predicted, tmp_path, name):
    exports, images, expected = predicted
    status, text = program('--model', exports[name], '--image_path', images, '--save_dir', tmp_path / 'out')
    assert status == 0 and 'segmented 3 of 3' in text
    files, found = (sorted(path.relative_to(folder) for path in folder.rglob('*.png'))
                    for folder in (expected, tmp_path / 'out'))
    assert len(files) == 6 and found == files
    for file in files:
        with Image.open(expected / file) as one, Image.open(tmp_path / 'out' / file) as other:
            np.testing.assert_array_equal(np.array(other), np.array(one), err_msg=str(file))
            assert other.mode == one.mode and other.getpalette() == one.getpalette()
        assert len(np.unique(np.array(Image.open(expected / file)))) > 1
