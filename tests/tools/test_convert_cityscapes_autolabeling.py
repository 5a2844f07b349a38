"""The conversion of the auto-labels against a formula, class by class, over the table of cityscapesscripts."""
import json
import shutil

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as reference_labels
from PIL import Image

from common.errors import FileError
from tests.tools.label_images import by_formula, read, save
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
        np.testing.assert_array_equal(read(path), by_formula(read(sources[name])))


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
    with pytest.raises(FileError, match=r'train_extra: expected label images.*found none.*extract') as info:
        run(tmp_path)
    assert '\n' not in str(info.value)


# ---------------------------------------------------------------- labels that tools/autolabel.py made

OWN = """name: own
ignore_index: {ignore}
classes:
- {{name: bush, color: [1, 2, 3]{first}}}
- {{name: house, color: [4, 5, 6]{second}}}
"""


@pytest.mark.parametrize('ignore, first, second, lookup', [
    (255, ', label_id: 40', ', label_id: 2', {40: 0, 2: 1, 0: 255, 39: 255, 255: 255}),
    (9, '', '', {0: 0, 1: 1, 9: 9, 255: 9})])
def test_classes_come_from_the_folder(tmp_path, ignore, first, second, lookup):
    (tmp_path / 'dataset.yml').write_text(OWN.format(ignore=ignore, first=first, second=second))
    save(tmp_path / 'refinement_final/train_extra/town/a_leftImg8bit.png', np.uint8([list(lookup)]))
    assert run(tmp_path) == 0
    np.testing.assert_array_equal(read(tmp_path / 'convert_autolabelled/town/a_leftImg8bit.png'),
                                  [list(lookup.values())])


def test_an_id_above_those_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / 'dataset.yml').write_text(OWN.format(ignore=9, first='', second=''))
    save(tmp_path / 'refinement_final/train_extra/town/a_leftImg8bit.png', np.uint8([[0, 1, 10]]))
    assert run(tmp_path) == 1
    assert 'expected an 8-bit single channel image of label ids (0..9 or 255), found the value 10' \
        in capsys.readouterr().err


def test_predictions_and_confidences_are_no_labels(toy, capsys):
    folder = next((toy / 'refinement_final/train_extra').iterdir())
    for kind in ('prediction', 'confidence'):
        save(folder / f'x_{kind}.png', np.full((4, 4), 200, np.uint8))
    assert run(toy) == 0
    assert capsys.readouterr().out.splitlines()[-1] == '4 converted, 0 already up to date, 0 failed'


def record(root, **other):
    """What tools/autolabel.py leaves in the folder, as far as it matters here."""
    names, ids = zip(*((label.name, label.id) for label in reference_labels if not label.ignoreInEval))
    content = {'complete': True, 'settings': {'classes': {'names': names, 'label_ids': ids, **other}}}
    path = root / 'refinement_final/train_extra/autolabel.json'
    path.write_text(json.dumps(content))
    return path, content


def test_labels_of_the_same_classes_are_converted(toy):
    record(toy)
    assert run(toy) == 0


@pytest.mark.parametrize('key, value', [('names', ['road']), ('label_ids', [])])
def test_labels_of_other_classes_are_refused(toy, key, value):
    path, _ = record(toy, **{key: value})
    with pytest.raises(ValueError, match=f'expected classes with the {key} of .*, found others; make') as info:
        run(toy)
    assert str(info.value).startswith(f'{path}: ') and not (toy / 'convert_autolabelled').exists()


def test_unfinished_labels_are_refused(toy):
    path, content = record(toy)
    path.write_text(json.dumps({**content, 'complete': False}))
    with pytest.raises(ValueError, match='expected finished labels, found those of a tools/autolabel.py that has not'):
        run(toy)
    assert not (toy / 'convert_autolabelled').exists()


def test_an_image_without_label_is_told_here_already(toy, capsys):
    assert run(toy) == 0 and not capsys.readouterr().err
    image = sorted(toy.glob('leftImg8bit_trainextra/leftImg8bit/train_extra/*/*.png'))[0]
    shutil.copy(image, image.with_name('new_leftImg8bit.jpg'))
    assert run(toy) == 0
    error = capsys.readouterr().err
    assert 'warning: training will refuse this: ' in error and 'found 1 of 5 images without label' in error
    assert f'{image.parent.name}/new: no label' in error
