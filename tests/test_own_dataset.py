"""Two data sets of one's own, of 11 and of 3 classes: from folders of images and masks to a score and pictures."""
import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image

import predict
import train
import val
from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.description import describe
from tests.conftest import run_script as run
from tests.conftest import write_tiny_config
from tools import prepare_folder

SIZE = 48, 66  # H, W
STREET = {'road': (90, 80, 95), 'pavement': (200, 60, 180), 'house': (80, 80, 60), 'tree': (40, 140, 40),
          'sky': (60, 130, 220), 'car': (20, 20, 160), 'person': (230, 30, 60), 'cycle': (120, 10, 40),
          'pole': (160, 160, 150), 'sign': (230, 220, 20), 'fence': (180, 150, 140)}
LANE = {'drivable': 40, 'lane marking': 90, 'other': 7}
VOID = 200


def scene(count, rng):
    """int (H, W) of 0..count-1 in bands, each cut by a box of the next class, and -1 at the lower edge."""
    pixels = np.arange(SIZE[0])[:, None] * count // SIZE[0] + np.zeros(SIZE, int)
    for i in range(count):
        top, left = rng.integers(0, SIZE[0] - 8), rng.integers(0, SIZE[1] - 12)
        pixels[top:top + 6, left:left + 10] = (i + 1) % count
    pixels[-3:] = -1
    return pixels


@pytest.fixture(scope='module', params=['11 classes, masks of colours', '3 classes, masks of values'])
def own(request, tmp_path_factory):
    """Folders, the data set made of them, a run of three iterations: each through its command line."""
    folder = tmp_path_factory.mktemp('own')
    by_color = request.param.startswith('11')
    keys = {**(STREET if by_color else LANE), 'void': (0, 0, 0) if by_color else VOID}
    table = np.array(list(keys.values()), np.uint8)
    rng = np.random.default_rng(len(keys))
    for split, count in (('train', 4), ('val', 2)):
        names = [f'{split} drive/{i:02d}' for i in range(count)]
        for name in names:
            mask = table[scene(len(keys) - 1, rng)]
            image = mask if by_color else np.dstack([mask] * 3)
            for kind, pixels, suffix in (('photos', image ^ rng.integers(0, 16, image.shape, np.uint8), '.jpg'),
                                         ('masks', mask, '_m.png')):
                (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / kind / f'{name}{suffix}')
        (folder / f'{split}.txt').write_text('\n'.join(names))
    (folder / 'classes.yml').write_text(''.join(
        f'{" ".join(map(str, key)) if by_color else key}: {name}\n' for name, key in keys.items()))
    write_tiny_config(folder / 'tiny.yml', optimizer=None)
    status = run(prepare_folder.main, '--images', folder / 'photos', '--masks', folder / 'masks', '--mask_suffix', '_m',
                 '--mapping', folder / 'classes.yml', '--lists', folder / 'train.txt', folder / 'val.txt',
                 '--out', folder / 'data', '--base_config', folder / 'tiny.yml', '--num_workers', 1)
    assert not status
    assert run(train.main, '--config', folder / 'data/train.yml', '--save_dir', folder / 'run', '--do_eval',
               '--use_vdl', '--save_interval', 2, '--log_iters', 1) is None
    names = [name for name in keys if name != 'void']
    return SimpleNamespace(folder=folder, data=folder / 'data', run=folder / 'run', names=names, colors=[
        tuple(color) for color in (STREET.values() if by_color else describe(str(folder / 'data')).labels.palette)])


def test_the_network_has_the_classes_and_the_record_their_names(own):
    weights = paddle.load(str(own.run / 'iter_3/model.pdparams'))
    assert weights['ocrnet.head.cls_head.weight'].shape[0] == len(own.names)
    last = [json.loads(line) for line in (own.run / 'metrics.jsonl').read_text().splitlines()][-1]
    assert last['kind'] == 'eval' and list(last['iou']) == own.names
    assert describe(str(own.run)).labels == describe(str(own.data)).labels


def test_the_score_is_that_of_its_classes(own, capsys):
    weights = own.run / 'iter_3/model.pdparams'
    assert run(val.main, '--config', own.data / 'train.yml', '--model_path', weights) is None
    printed = capsys.readouterr().out
    report = json.loads((own.run / 'iter_3/evaluation_train.json').read_text())
    assert list(report['classes']) == own.names and all(f'\n{name} ' in printed for name in own.names)
    assert run(predict.main, '--config', own.data / 'train.yml', '--model_path', weights, '--image_path',
               own.folder / 'photos/val drive', '--save_dir', own.folder / 'result') is None
    guess, truth = [], []
    for i in range(2):
        with Image.open(own.folder / f'result/pseudo_color_prediction/0{i}.png') as image:
            guess.append(np.array(image))
        mask = np.array(Image.open(own.folder / f'masks/val drive/0{i}_m.png')).reshape(*SIZE, -1)
        keys = list(STREET.values()) if len(own.names) == 11 else [[value] for value in LANE.values()]
        ids = np.full(SIZE, 255)
        for train_id, key in enumerate(keys):
            ids[(mask == key).all(-1)] = train_id
        truth.append(ids)
    guess, truth = np.array(guess), np.array(truth)
    valid = truth != 255
    assert valid.mean() == 45 / 48
    iou = [((guess == i) & (truth == i)).sum() / (((guess == i) | (truth == i)) & valid).sum()
           for i in range(len(own.names))]
    # Five pixels of the 540 that each of 11 classes has on average: where two logits are equal up to rounding
    assert [entry['iou'] for entry in report['classes'].values()] == pytest.approx(iou, abs=0.01)
    assert report['miou'] == pytest.approx(np.mean(iou), abs=0.01)


def test_pictures_have_its_colours_also_where_the_data_are_not(own, tmp_path):
    """The run's folder alone goes to another machine."""
    shutil.copytree(own.run, tmp_path / 'run')
    config = tmp_path / 'run/config.yml'
    config.write_text(config.read_text().replace(str(own.data), '/data/not/here'))
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / 'x.png'), rng.integers(0, 256, (40, 60, 3), np.uint8))
    assert run(predict.main, '--config', config, '--model_path', tmp_path / 'run/iter_3/model.pdparams', '--image_path',
               tmp_path / 'x.png', '--save_dir', tmp_path / 'out') is None
    with Image.open(tmp_path / 'out/pseudo_color_prediction/x.png') as image:
        assert image.getpalette()[:3 * len(own.names)] == [value for color in own.colors for value in color]
        ids, rgb = np.array(image), np.array(image.convert('RGB'))
    assert ids.max() < len(own.names)
    np.testing.assert_array_equal(rgb, np.array(own.colors)[ids])


def test_curves_and_pictures_of_the_run(own):
    data = next(own.run.glob('vdlrecords*')).read_bytes()
    assert all(f'Evaluate/IoU/{name}'.encode() in data for name in own.names)
    assert b'Evaluate/picture_1' in data and b'IoU/sidewalk' not in data


def test_a_run_is_not_continued_with_other_classes(own, tmp_path, capsys):
    shutil.copytree(own.run, tmp_path / 'run')
    shutil.copytree(own.data, tmp_path / 'data')
    path = tmp_path / 'data/dataset.yml'
    lines = path.read_text().splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    path.write_text(''.join(lines))
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / 'run').rglob('*') if path.name != '.lock')
    assert run(train.main, '--config', own.data / 'train.yml', '--save_dir', tmp_path / 'run', '--resume', 'auto',
               '--iters', 4, '--opts', f'train_dataset.dataset_root={tmp_path / "data"}',
               f'val_dataset.dataset_root={tmp_path / "data"}') == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'error: {tmp_path}/run/dataset.yml: expected the {len(own.names)} classes {own.names[1]}, '
                            f'{own.names[0]}, ')
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / 'run').rglob('*') if path.name != '.lock') == before


def test_class_uniform_sampling_of_a_jpeg_that_is_turned(own, tmp_path):
    """OpenCV turns it as EXIF says; the size in its header is the other one."""
    import paddleseg.transforms as T
    shutil.copytree(own.data, tmp_path / 'data')
    image = sorted((tmp_path / 'data/leftImg8bit/train').rglob('*.jpg'))[0]
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.open(image).transpose(Image.Transpose.ROTATE_270).save(image, exif=exif)
    dataset = CityscapesAutolabeling([T.RandomPaddingCrop((32, 32))], str(tmp_path / 'data'), coarse_multiple=0,
                                     class_uniform=0.5)
    assert {dataset[i]['label'].shape for i in range(len(dataset))} == {(32, 32)}


@pytest.mark.parametrize('count', [1, 255])
def test_the_fewest_and_the_most_classes(tiny_config, tmp_path, count):
    from common.builder import Builder
    from common.config import Config
    from training.trainer import Trainer
    rng = np.random.default_rng(0)
    for i in range(2):
        for kind, pixels in (('photos', rng.integers(0, 256, (*SIZE, 3), np.uint8)),
                             ('masks', rng.integers(0, count, SIZE).astype(np.uint8))):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / kind / f'{i}.png')
    (tmp_path / 'classes.yml').write_text(''.join(f'{i}: class {i}\n' for i in range(count)))
    (tmp_path / 'train.txt').write_text('0\n1\n')
    status = run(prepare_folder.main, '--images', tmp_path / 'photos', '--masks', tmp_path / 'masks', '--mapping',
                 tmp_path / 'classes.yml', '--out', tmp_path / 'data', '--base_config', tiny_config, '--lists',
                 tmp_path / 'train.txt', '--num_workers', 0)
    assert not status
    builder = Builder(Config(tmp_path / 'data/train.yml'))
    trainer = Trainer(builder.model, builder.train_dataset, builder.loss, builder.optimizer, iters=1, batch_size=2,
                      save_dir=None)
    assert trainer.run() is None and trainer.state['iteration'] == 1
