"""The conversion of the auto-labels against a formula, class by class, over the table of cityscapesscripts."""
import shutil

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as reference_labels
from PIL import Image

from tools.convert_cityscapes_autolabeling import main
from tools.make_toy_cityscapes import make_toy


@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    root = tmp_path_factory.mktemp('fresh') / 'toy'
    make_toy(root, (64, 128), train=0, val=0, extra=4, seed=3)
    return root


@pytest.fixture
def toy(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / 'toy')


def run(root, workers=1):
    return main(['--dataset_root', str(root), '--num_workers', str(workers)])


def read(path):
    return np.array(Image.open(path))


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def expected_train_ids(label_ids):
    """Void everywhere, then one class after the other."""
    train_ids = np.full(label_ids.shape, 255, np.uint8)
    for label in reference_labels:
        if not label.ignoreInEval:
            train_ids[label_ids == label.id] = label.trainId
    return train_ids


@pytest.mark.parametrize('workers', [1, 2])
def test_equals_the_formula_under_the_same_name(toy, capsys, workers):
    everything = np.arange(256, dtype=np.uint8)[np.r_[0:34, 255]].reshape(5, 7)
    save(toy / 'refinement_final/train_extra/allstadt/allstadt_000000_000000_leftImg8bit.png', everything)
    assert run(toy, workers) == 0
    assert capsys.readouterr().out.splitlines()[-1] == '5 converted, 0 already up to date, 0 failed'
    sources = {path.relative_to(toy / 'refinement_final/train_extra'): path
               for path in toy.glob('refinement_final/train_extra/*/*.png')}
    results = {path.relative_to(toy / 'convert_autolabelled'): path
               for path in (toy / 'convert_autolabelled').rglob('*') if path.is_file()}
    assert set(sources) == set(results) and len(sources) == 5
    for name, path in results.items():
        with Image.open(path) as image:
            assert image.mode == 'L'
        np.testing.assert_array_equal(read(path), expected_train_ids(read(sources[name])))


def test_leftover_folders_are_ignored_and_named(toy, capsys):
    label = np.full((4, 4), 7, np.uint8)
    save(toy / 'refinement_final/tmp/x_000000_000000_leftImg8bit.png', label)
    save(toy / 'refinement_final/train_extra/tmp/x_000000_000000_leftImg8bit.png', label)
    assert run(toy) == 0
    output = capsys.readouterr().out
    assert f'{toy}/refinement_final/tmp: ignored' in output
    assert f'{toy}/refinement_final/train_extra/tmp: ignored' in output
    assert not list(toy.glob('convert_autolabelled/**/x_*')) and '4 converted' in output
    assert {path.name for path in (toy / 'convert_autolabelled').iterdir()} == {
        path.name for path in (toy / 'leftImg8bit_trainextra/leftImg8bit/train_extra').iterdir()}


def test_without_leftovers_nothing_is_said_of_them(toy, capsys):
    run(toy)
    assert 'ignored' not in capsys.readouterr().out


def test_impossible_label_ids_are_refused(toy, capsys):
    for value in (34, 254):
        path = toy / f'refinement_final/train_extra/badstadt/bad{value}_leftImg8bit.png'
        save(path, np.full((4, 4), value, np.uint8))
    assert run(toy) == 1
    output = capsys.readouterr()
    for value in (34, 254):
        line = next(line for line in output.err.splitlines() if f'bad{value}_leftImg8bit.png' in line)
        assert f'found the value {value}' in line
    assert output.out.splitlines()[-1] == '4 converted, 0 already up to date, 2 failed'
    assert not (toy / 'convert_autolabelled/badstadt').exists()


def test_second_run_skips_what_is_up_to_date(toy, capsys):
    run(toy)
    next(toy.glob('convert_autolabelled/*/*.png')).unlink()
    assert run(toy) == 0
    assert capsys.readouterr().out.splitlines()[-1] == '1 converted, 3 already up to date, 0 failed'


def test_sources_are_not_changed(toy):
    before = {path: path.read_bytes() for path in toy.rglob('*') if path.is_file()}
    run(toy)
    assert {path: path.read_bytes() for path in before} == before


def test_missing_folder(tmp_path):
    (tmp_path / 'refinement_final').mkdir()
    with pytest.raises(FileNotFoundError, match=r'train_extra: expected label images.*found none.*extract') as info:
        run(tmp_path)
    assert '\n' not in str(info.value)
