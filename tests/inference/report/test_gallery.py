"""The pictures of a report, against the arrays they show."""
import io
import json
import threading

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.labels import CITYSCAPES, LabelSet
from inference import map_pictures
from inference.background import WAITING, Background
from inference.maps import Maps
from inference.report import gallery
from inference.report.gallery import Gallery, draw, drawn_images
from tests.made_report import guess, scene

SIZE = (60, 100)


def maps_of(size, seed=0, scales=(0.5, 1.0, 2.0), classes=19):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(len(scales)), size).astype(np.float32) if scales else np.zeros((*size, 0))
    smooth = np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size)
    return Maps(rng.integers(0, classes, size, np.uint8), smooth, smooth,
                {scale: np.ascontiguousarray(weights[..., i]) for i, scale in enumerate(scales)})


def pictures_of(image, maps, label=None, labels=CITYSCAPES):
    decided = map_pictures.deciding_scale(maps) if maps.attention else None
    return draw(image, maps, decided, label, labels, labels.color_table())


def indices(data):
    picture = Image.open(io.BytesIO(data))
    assert picture.mode == 'P'
    return np.array(picture)


def test_maps_of_ids_are_exact():
    maps = maps_of(SIZE)
    label = np.random.default_rng(1).choice([0, 5, 18, 255], SIZE).astype(np.uint8)
    label[:10] = maps.classes[:10]
    files = pictures_of(np.zeros((*SIZE, 3), np.uint8), maps, label)
    assert (indices(files['prediction.png']) == maps.classes).all()
    assert (indices(files['truth.png']) == label).all()
    rgb = np.array(Image.open(io.BytesIO(files['prediction.png'])).convert('RGB'))
    assert (rgb == np.array(CITYSCAPES.palette)[maps.classes]).all()
    decided = indices(files['scales.png'])
    weights = np.stack(list(maps.attention.values()))
    assert (np.take_along_axis(weights, decided[None].astype(int), 0)[0] == weights.max(axis=0)).all()


def test_errors_veil_what_is_right_and_stripe_what_is_wrong():
    maps = maps_of(SIZE)
    label = maps.classes.copy()
    label[20:40] = (label[20:40] + 1) % 19
    label[40:] = 255
    files = pictures_of(np.full((*SIZE, 3), 128, np.uint8), maps, label)
    rgba = np.array(Image.open(io.BytesIO(files['errors.png'])).convert('RGBA')).astype(int)
    assert (rgba[:20] == rgba[0, 0]).all() and 0 < rgba[0, 0, 3] < 255, 'right: a veil'
    assert (rgba[40:] == rgba[-1, -1]).all() and 0 < rgba[-1, -1, 3] < 255, 'void: another'
    wrong = rgba[20:40]
    assert (wrong[..., 3] == 255).all()
    colors, counts = np.unique(wrong.reshape(-1, 4), axis=0, return_counts=True)
    assert len(colors) == 2 and counts.min() > 0.2 * counts.sum(), 'two stripes'
    # Told apart without hue: by luminance (Rec. 709) of stripe, other stripe and veiled photo.
    bright = sorted([*(colors[:, :3] @ [0.2126, 0.7152, 0.0722]), 0.25 * 128 + 0.75 * 255])
    assert min(np.diff(bright)) > 60
    thumb = cv2.imdecode(np.frombuffer(files['thumb_errors.jpg'], np.uint8), cv2.IMREAD_COLOR)
    assert thumb[30].astype(int)[:, 2].mean() > thumb[30].astype(int)[:, 0].mean() + 100, 'orange, in BGR'


def test_confidence_is_cividis():
    files = pictures_of(np.zeros((*SIZE, 3), np.uint8), maps_of(SIZE))
    shown = cv2.imdecode(np.frombuffer(files['confidence.jpg'], np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    # Matplotlib's table of the same map, an implementation apart from OpenCV's.
    from matplotlib import colormaps
    wanted = colormaps['cividis'](np.linspace(0, 1, shown[..., 0].size))[:, :3].reshape(shown.shape) * 255
    assert np.abs(shown - wanted).mean() < 3, 'but for JPEG'


@pytest.mark.parametrize('size', [(1, 1), (20, 30000), (3000, 2), (7, 5)])
def test_any_size(size):
    files = pictures_of(np.zeros((*size, 3), np.uint8), maps_of(size), np.zeros(size, np.uint8))
    for name, data in files.items():
        height, width = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2]
        limit = gallery.LONGEST_THUMB if name.startswith('thumb') else gallery.LONGEST
        assert 1 <= max(height, width) <= limit and min(height, width) >= 1, name


def test_a_network_of_one_scale_without_ground_truth():
    files = pictures_of(np.zeros((*SIZE, 3), np.uint8), maps_of(SIZE, scales=()))
    assert set(files) == {'input.jpg', 'prediction.png', 'confidence.jpg', 'thumb_input.jpg', 'thumb_prediction.jpg'}


def test_own_ignore_value_and_colours():
    labels = LabelSet(('a', 'b'), ((1, 2, 3), (4, 5, 6)), ignore_index=9)
    maps = maps_of(SIZE, classes=2)
    label = np.where(np.arange(SIZE[1]) < 50, maps.classes, 9).astype(np.uint8)
    files = pictures_of(np.zeros((*SIZE, 3), np.uint8), maps, label, labels)
    codes = indices(files['errors.png'])
    assert (codes[:, :50] == gallery.RIGHT).all() and (codes[:, 50:] == gallery.VOID).all()


def test_weight_of_a_cityscapes_image():
    """Stated in docs/evaluation.md: 1024 x 2048, drawn, with its ground truth and three scales."""
    image, label = scene(0, (1024, 2048))
    grain = np.random.default_rng(0).normal(0, 4, image.shape)  # of a camera
    image = np.clip(image + grain, 0, 255).astype(np.uint8)
    files = pictures_of(image, guess(label, 0), label)
    size = {name: len(data) for name, data in files.items()}
    assert sum(size.values()) < 2_000_000
    assert all(size[name] < 25_000 for name in size if name.startswith('thumb'))
    assert size['prediction.png'] < 100_000 and size['errors.png'] < 150_000 and size['confidence.jpg'] < 150_000


def test_folders_are_plain_unique_and_complete(tmp_path):
    names = ['a/b', 'a b', 'a_b', '../../x', '</script>"\'&', 'ü' * 300, '']
    with Gallery(tmp_path, CITYSCAPES, threads=2) as made:
        for i, name in enumerate(names):
            made.add(i, name, lambda: np.zeros((*SIZE, 3), np.uint8), maps_of(SIZE, i))
    found = drawn_images(tmp_path)
    assert [image['index'] for image in found] == list(range(len(names)))
    assert [image['name'] for image in found] == names
    folders = [image['folder'] for image in found]
    assert len(set(folders)) == len(names)
    for image, folder in zip(found, folders):
        assert folder.startswith('pictures/') and folder.count('/') == 1 and '..' not in folder.split('/')
        assert folder.replace('/', '').replace('_', '').replace('.', '').replace('-', '').isalnum() and folder.isascii()
        assert len(list((tmp_path / folder).iterdir())) == 10
        assert image['pixels'] == np.bincount(maps_of(SIZE, image['index']).classes.ravel(), minlength=19).tolist()
        assert image['confidence'] == pytest.approx(0.5) and sum(image['decided']) == pytest.approx(1)
    (tmp_path / folders[2] / 'record.json').unlink()
    assert len(drawn_images(tmp_path)) == len(names) - 1, 'an image without its record is not complete'
    json.dumps(found)


def test_an_error_while_writing_is_raised(tmp_path):
    def broken():
        raise OSError(28, 'No space left on device')

    with pytest.raises(OSError, match='No space left'), Gallery(tmp_path, CITYSCAPES) as made:
        made.add(0, 'a', broken, maps_of(SIZE))
    assert drawn_images(tmp_path) == []


def test_background_work_is_bounded():
    """However fast calls come, no more than the threads and two more hold their arguments."""
    alive, most, lock = 0, 0, threading.Lock()

    def done():
        nonlocal alive
        with lock:
            alive -= 1

    with Background(threads=2) as work:
        for _ in range(50):
            with lock:
                alive += 1
                most = max(most, alive)
            work.submit(done)
    assert alive == 0 and most <= 2 + WAITING + 1
