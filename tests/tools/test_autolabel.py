"""tools/autolabel.py as a user runs it, with a tiny network; its values against NumPy."""
import json
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import paddle
import pytest
from cityscapesscripts.helpers.labels import trainId2label

import train
from datasets.labels import CITYSCAPES
from inference import backends
from inference.predictor import Predictor
from tests.conftest import PATIENCE, ROOT, write_tiny_config
from tests.conftest import run_script as run
from tools import autolabel, convert_cityscapes_autolabeling
from tools.autolabelling import files

LABEL_IDS = np.array([trainId2label[i].id for i in range(19)], np.uint8)
IMAGES = 'leftImg8bit_trainextra/leftImg8bit/train_extra'
LABELS = 'refinement_final/train_extra'


def refused(capsys, main, *argv):
    """The one line that a script refuses its work with."""
    assert run(main, *argv) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*')
            if p.is_file() and not p.name.startswith('.')}


def pngs(folder):
    return {name: data for name, data in contents(folder).items() if name.endswith('.png')}


@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    """(config, weights) of a tiny network that is random but sure of itself: confidences from 0.1 to 1."""
    from common.builder import Builder
    from common.config import Config

    folder = tmp_path_factory.mktemp('trained')
    config = write_tiny_config(folder / 'tiny.yml', toy, optimizer=None, n_scales=[0.5, 1.0])
    paddle.seed(1)
    state = Builder(Config(config)).model.state_dict()
    for name in ('ocrnet.head.cls_head.weight', 'ocrnet.head.cls_head.bias'):
        state[name] = paddle.randn(state[name].shape) * (0.8 if name.endswith('weight') else 0)
    paddle.save(state, str(folder / 'model.pdparams'))
    return config, folder / 'model.pdparams'


def command(trained, root, *argv):
    return ('--config', trained[0], '--model_path', trained[1], '--image_dir', root / IMAGES,
            '--save_dir', root / LABELS, *argv)


@pytest.fixture(scope='module')
def made(trained, toy, tmp_path_factory):
    """Root folder with the toy's extra images and labels of them, made with a mirrored second look."""
    root = tmp_path_factory.mktemp('made')
    shutil.copytree(toy / IMAGES, root / IMAGES)
    assert run(autolabel.main, *command(trained, root, '--aug_pred', '--flip_horizontal')) is None
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy to change."""
    return shutil.copytree(made, tmp_path / 'root')


@pytest.fixture
def again(trained, root):
    def again(*argv):
        return run(autolabel.main, *again.argv, *argv)

    again.argv = command(trained, root, '--aug_pred', '--flip_horizontal')
    return again


@pytest.fixture
def inferences(monkeypatch):
    """The samples that the network sees from now on."""
    seen, confident = [], autolabel.confident
    monkeypatch.setattr(autolabel, 'confident', lambda *args: seen.append(args) or confident(*args))
    return seen


def outputs(root):
    """{stem: (label, prediction, confidence)} of a root folder."""
    folder = root / LABELS
    return {p.name.removesuffix('_prediction.png'): tuple(read(str(p).replace('prediction', kind)) for kind in (
        'leftImg8bit', 'prediction', 'confidence')) for p in folder.rglob('*_prediction.png')}


# ---------------------------------------------------------------- predictions and confidences

def test_values_are_the_softmax_of_the_averaged_logits(made, trained):
    from common.builder import Builder
    from common.config import Config
    predict = Predictor(backends.create(Builder(Config(trained[0])), str(trained[1])))
    found = outputs(made)
    images = sorted((made / IMAGES).rglob('*.png'))
    assert set(found) == {p.name.removesuffix('_leftImg8bit.png') for p in images} and len(images) == 6
    for path in images[::2]:
        rgb = cv2.imread(str(path))[..., ::-1] / 255
        normal = ((rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None].astype('float32')
        logits, mirrored = (predict.logits(paddle.to_tensor(np.ascontiguousarray(x))).numpy()[0].astype(np.float64)
                            for x in (normal, normal[..., ::-1]))
        mean = (logits + mirrored[..., ::-1]) / 2
        odds = np.exp(mean - mean.max(0))
        probability = odds.max(0) / odds.sum(0)
        label, prediction, confidence = found[path.name.removesuffix('_leftImg8bit.png')]
        assert label.dtype == prediction.dtype == confidence.dtype == np.uint8 and label.shape == (64, 128)
        # Engines and batches agree to 1e-5 of logits of about 10 (see test_backends.py): 1e-4, and of that a quarter
        # in a probability, at most. What is nearer than that to another class or to the threshold may fall to either.
        certain = np.sort(mean, 0)[-1] - np.sort(mean, 0)[-2] > 1e-3
        np.testing.assert_array_equal(prediction[certain], LABEL_IDS[mean.argmax(0)][certain])
        assert (confidence <= 255 * probability + 0.02).all() and (confidence > 255 * probability - 1.02).all()
        sure = np.abs(probability - 230 / 255) > 1e-4
        expected = np.where(probability >= 230 / 255, prediction, 0)
        np.testing.assert_array_equal(label[sure], expected[sure])
        assert (label == 0).any() and (label > 0).any()


# ---------------------------------------------------------------- thresholds

def set_outputs(root, rng, classes):
    """Random predictions of some classes and confidences in place of the network's."""
    for path in (root / LABELS).rglob('*_prediction.png'):
        cv2.imwrite(str(path), LABEL_IDS[rng.choice(classes, [64, 128])])
        confidence = 255 - np.minimum(rng.geometric(0.02, [64, 128]), 255)
        cv2.imwrite(str(path).replace('prediction', 'confidence'), confidence.astype(np.uint8))


def test_thresholds_of_classes_and_their_boundaries(root, again, inferences):
    set_outputs(root, np.random.default_rng(0), [0, 6, 11, 13])
    assert again('--threshold', 0.8, '--class_thresholds', 'traffic light=0.6', 'person=1', 'car=0') is None
    assert not inferences
    lowest = {7: 204, 19: 153, 24: 255, 26: 0}
    for label, prediction, confidence in outputs(root).values():
        expected = np.zeros_like(label)
        for label_id, level in lowest.items():
            keep = (prediction == label_id) & (confidence >= level)
            assert keep.any() or level == 255
            expected[keep] = label_id
        np.testing.assert_array_equal(label, expected)
    record = json.loads((root / LABELS / files.SETTINGS).read_bytes())
    assert record['class_thresholds'] == {'traffic light': 0.6, 'person': 1, 'car': 0} and record['complete']
    assert record['classes']['traffic light']['threshold'] == pytest.approx(0.6)
    assert record['classes']['road']['threshold'] == pytest.approx(0.8)


def test_budget_equals_sorting(root, again, capsys):
    """The least confident pixel of the best 30 % of a class, over all images, is the last to be kept."""
    set_outputs(root, np.random.default_rng(1), [0, 0, 0, 6, 11])
    assert again('--threshold', 0.95, '--class_thresholds', 'road=0.3', '--class_budget', 0.3) is None
    labels, predictions, confidences = (np.stack(x) for x in zip(*outputs(root).values()))
    expected = np.zeros_like(labels)
    for label_id, most in ((7, 77), (19, 243), (24, 243)):
        own = predictions == label_id
        best = np.sort(confidences[own])[::-1]
        level = min(most, int(best[int(np.ceil(0.3 * best.size)) - 1]))
        assert level < most or label_id == 7  # road's own threshold keeps more already
        expected[own & (confidences >= level)] = label_id
        assert (labels[own] > 0).mean() >= 0.3
    np.testing.assert_array_equal(labels, expected)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('person'))
    assert float(line.split()[3]) == pytest.approx(100 * (labels == 24).sum() / (predictions == 24).sum(), abs=0.006)


# ---------------------------------------------------------------- resuming, several processes, broken images

def test_a_second_run_changes_nothing_and_needs_no_network(root, again, made, inferences, monkeypatch):
    monkeypatch.setattr('inference.backends.create', lambda *_: pytest.fail('weights loaded for nothing'))
    assert again() is None
    assert contents(root / LABELS) == contents(made / LABELS) and not inferences


def test_an_interrupted_run_goes_on_to_the_same_files(root, again, made, inferences, monkeypatch):
    """Stopped in the third image, then a power cut took the prediction of one image that had its confidence."""
    shutil.rmtree(root / LABELS)
    whole = autolabel.confident

    def stop(*args):
        if len(inferences) == 2:
            give_up = time.monotonic() + PATIENCE
            while len(pngs(root / LABELS)) < 4 and time.monotonic() < give_up:
                time.sleep(0.01)  # the second image is written in another thread, and dropped if it had not begun
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(autolabel, 'confident', stop)
    assert again() == 130
    assert len(pngs(root / LABELS)) == 4 and not list((root / LABELS).rglob('*_leftImg8bit.png'))
    next((root / LABELS).rglob('*_prediction.png')).unlink()
    monkeypatch.setattr(autolabel, 'confident', whole)
    inferences.clear()
    assert again() is None
    assert len(inferences) == 5 and contents(root / LABELS) == contents(made / LABELS)


def test_new_labels_that_are_not_finished_are_not_converted(root, again, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(autolabel, 'label_all', stop)
    assert again('--threshold', 0.5) == 130 and capsys.readouterr().err.strip() == 'interrupted'
    line = refused(capsys, convert_cityscapes_autolabeling.main, '--dataset_root', root)
    assert f'{root / LABELS / files.SETTINGS}: expected finished labels' in line and 'run its command again' in line
    monkeypatch.undo()
    assert again('--threshold', 0.5) is None
    assert run(convert_cityscapes_autolabeling.main, '--dataset_root', root, '--num_workers', 1) == 0


def test_two_processes_write_what_one_writes_and_report_together(root, made, trained, tmp_path):
    """An image in the second process's share is broken: the first one tells."""
    shutil.rmtree(root / LABELS)
    broken = sorted((root / IMAGES).rglob('*.png'))[1]
    broken.write_bytes(b'no image')
    done = subprocess.run([sys.executable, '-m', 'paddle.distributed.launch', '--nproc_per_node', '2', '--log_dir',
                           str(tmp_path / 'logs'), 'tools/autolabel.py', *map(str, command(trained, root)),
                           '--aug_pred', '--flip_horizontal'], cwd=ROOT, capture_output=True, text=True)
    first, second = ((tmp_path / 'logs' / f'workerlog.{i}').read_text() for i in range(2))
    assert done.returncode != 0 and 'Traceback' not in first + second
    assert f'error: {broken}: expected an image; found' in first and 'agreement' not in first
    assert 'class ' in first and 'class ' not in second and 'labels of 5 images' in first
    stem = broken.name.removesuffix('_leftImg8bit.png')
    expected = {name: data for name, data in outputs(made).items() if name != stem}
    found = outputs(root)
    assert found.keys() == expected.keys() and len(pngs(root / LABELS)) == 15
    for name, images in found.items():  # another number of threads may change the last bit of a logit
        (_, prediction, confidence), (_, one_prediction, one_confidence) = images, expected[name]
        assert (prediction == one_prediction).mean() > 0.999
        assert np.abs(confidence - one_confidence.astype(int))[prediction == one_prediction].max() <= 1
        np.testing.assert_array_equal(images[0], np.where(confidence >= 230, prediction, 0))
    record = json.loads((root / LABELS / files.SETTINGS).read_bytes())
    assert record['pixels'] == 5 * 64 * 128 and record['complete'] and len(record['failed']) == 1


def test_a_broken_image_is_told_and_the_rest_is_done(root, again, made, inferences, capsys):
    broken = sorted((root / IMAGES).rglob('*.png'))[3]
    good = broken.read_bytes()
    shutil.rmtree(root / LABELS)
    broken.write_bytes(good[:200])
    assert again() == 1
    error = capsys.readouterr().err
    assert f'error: {broken}: expected an image; found 200 bytes' in error
    assert f'error: 1 of 6 images have no label, and training wants one for each; replace them and run this again, ' \
           f'or remove them from {root / IMAGES}' in error
    name = broken.relative_to(root / IMAGES).as_posix()
    assert pngs(root / LABELS).keys() == {n for n in pngs(made / LABELS) if not n.startswith(name[:-16])}
    assert run(convert_cityscapes_autolabeling.main, '--dataset_root', root, '--num_workers', 1) == 0
    error = capsys.readouterr().err
    assert 'warning: training will refuse this' in error and f'{name[:-16]}: no label' in error
    inferences.clear()
    broken.write_bytes(good)
    assert again() is None and len(inferences) == 1
    assert contents(root / LABELS) == contents(made / LABELS)


# ---------------------------------------------------------------- the settings of a folder

@pytest.mark.parametrize('other, key', [
    (['--flip_horizontal'], 'test_time.flip_horizontal: True, now False'),
    (['--aug_pred', '--flip_horizontal', '--scales', 0.5, 1], 'test_time.scales.0: 1.0, now 0.5'),
    (['--aug_pred', '--flip_horizontal', '--is_slide', '--crop_size', 64, 32, '--stride', 32, 32],
     'test_time.crop_size.0: None, now 32'),
    (['--aug_pred', '--flip_horizontal', '--opts', 'model.n_scales=[1.0]'], 'model.n_scales.0: 0.5, now 1.0'),
    (['--aug_pred', '--flip_horizontal', '--image_dir', '{root}/leftImg8bit_trainextra'], 'image_dir: ')])
def test_other_predictions_do_not_enter_the_folder(root, trained, capsys, other, key):
    before = contents(root)
    other = [o.format(root=root) if isinstance(o, str) else o for o in other]
    line = refused(capsys, autolabel.main, *command(trained, root, *other))
    assert f'--save_dir {root / LABELS}: expected predictions made with the settings of this run, found in ' \
           f'autolabel.json {key}' in line
    assert contents(root) == before


def test_other_weights_do_not_enter_the_folder(root, trained, tmp_path, capsys):
    weights = tmp_path / 'other.pdparams'
    state = paddle.load(str(trained[1]))
    paddle.save({**state, 'ocrnet.head.cls_head.bias': paddle.ones([19])}, str(weights))
    options = '--aug_pred', '--flip_horizontal'
    line = refused(capsys, autolabel.main, *command((trained[0], weights), root, *options))
    assert 'weights_sha256: ' in line and 'choose another --save_dir' in line
    for path in (root / LABELS).rglob('*.png'):
        path.unlink()
    assert run(autolabel.main, *command((trained[0], weights), root, *options)) is None  # nothing to protect any more


def test_labels_of_others_are_not_overwritten(trained, toy, tmp_path, capsys):
    root = shutil.copytree(toy, tmp_path / 'toy')  # with the labels that NVIDIA's archive has, here the toy's
    before = contents(root)
    line = refused(capsys, autolabel.main, *command(trained, root))
    assert 'expected a new or empty folder or one with autolabel.json, found drachenau, holzhausen, zinnfeld' in line
    assert contents(root) == before
    (root / LABELS / files.SETTINGS).write_text('{}')
    line = refused(capsys, autolabel.main, *command(trained, root))
    assert f'{root / LABELS / files.SETTINGS}: expected what tools/autolabel.py writes' in line


# ---------------------------------------------------------------- on to training

def test_from_autolabel_to_one_iteration_of_training(root, toy, trained, tmp_path, capsys):
    for name in ('leftImg8bit', 'gtFine'):
        shutil.copytree(toy / name, root / name)
    image = sorted((root / IMAGES).rglob('*.png'))[0]  # one of the images is a JPEG; its label is a PNG all the same
    cv2.imwrite(str(image.with_suffix('.jpg')), cv2.imread(str(image)))
    image.unlink()
    assert run(convert_cityscapes_autolabeling.main, '--dataset_root', root, '--num_workers', 1) == 0
    assert 'warning' not in capsys.readouterr().err
    to_train_id = {0: 255, **{label_id: i for i, label_id in enumerate(LABEL_IDS)}}
    for stem, (label, _, _) in outputs(root).items():
        (converted,) = (root / 'convert_autolabelled').rglob(f'{stem}_leftImg8bit.png')
        np.testing.assert_array_equal(read(converted), np.vectorize(to_train_id.get)(label))
    assert len(list((root / 'convert_autolabelled').rglob('*.*'))) == 6
    assert run(train.main, '--config', trained[0], '--iters', 1, '--num_workers', 0, '--save_dir', tmp_path / 'run',
               '--opts', f'train_dataset.dataset_root={root}', f'val_dataset.dataset_root={root}') is None
    assert '12 images per epoch' in capsys.readouterr().out


def test_ground_truth_on_the_command_line(root, again, toy, capsys):
    """The toy knows its labels; with each prediction in its place, all that is kept is right."""
    truth = root / 'truth'
    shutil.copytree(toy / LABELS, truth)
    for path in sorted(truth.rglob('*.png'))[:2]:
        path.unlink()
    for path in truth.rglob('*.png'):
        prediction = root / LABELS / path.relative_to(truth).as_posix().replace('leftImg8bit', 'prediction')
        ids = read(path)
        files.save(prediction, np.where(np.isin(ids, LABEL_IDS), ids, 7).astype(np.uint8))
    assert again('--ground_truth', truth) is None
    printed = capsys.readouterr().out
    assert '4 of 6 images compared with ground truth' in printed
    record = json.loads((root / LABELS / files.SETTINGS).read_bytes())
    assert record['agreement'] == record['miou'] == record['agreement_of_all'] == 1 and 0 < record['coverage'] < 1
    files.save(path, np.full([3, 3], 7, np.uint8))
    line = refused(capsys, autolabel.main, '--ground_truth', truth, *again.argv)
    assert f'{path}: expected the size of its image (64, 128), found (3, 3)' in line


def test_changed_predictions_are_refused(root, trained, capsys):
    path = next((root / LABELS).rglob('*_prediction.png'))
    files.save(path, np.full([64, 128], 3, np.uint8))
    line = refused(capsys, autolabel.main, *command(trained, root, '--aug_pred', '--flip_horizontal'))
    assert f'{path}: expected label ids and confidences of one size' in line and 'delete both and run again' in line


def test_plain_images_get_labels_and_a_word_on_their_names(trained, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    cv2.imwrite(str(tmp_path / 'images' / 'x.jpg'), rng.integers(0, 255, [37, 51, 3], np.uint8))
    assert run(autolabel.main, '--config', trained[0], '--model_path', trained[1], '--image_dir', tmp_path / 'images',
               '--save_dir', tmp_path / 'out', '--threshold', 0) is None
    assert '1 of 1 images are not named <city>/<stem>_leftImg8bit' in capsys.readouterr().out
    label, prediction = read(tmp_path / 'out/x.png'), read(tmp_path / 'out/x_prediction.png')
    assert label.shape == (37, 51) and np.isin(label, CITYSCAPES.label_ids).all()
    np.testing.assert_array_equal(label, prediction)
    assert sorted(pngs(tmp_path / 'out')) == ['x.png', 'x_confidence.png', 'x_prediction.png']
