"""dataset.yml: what it says is what the dataset has, and every way not to say it is refused in one line."""
import os

import numpy as np
import pytest
import yaml

from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.description import OFFICIAL, Description, describe
from datasets.labels import CITYSCAPES, LabelSet, distinct_colors

TWO = 'classes: [{name: road, color: [1, 2, 3]}, {name: car, color: [4, 5, 6]}]\n'


def say(folder, text):
    (folder / 'dataset.yml').write_text(text, encoding='utf-8')
    return describe(str(folder))


def test_without_the_file_it_is_cityscapes(tmp_path):
    found = describe(str(tmp_path))
    assert found is OFFICIAL and found.labels is CITYSCAPES and found.labels.num_classes == 19
    assert found.images == {'train': 2975, 'val': 500, 'test': 1525, 'train_extra': 19998}  # of the download page


def test_all_that_it_can_say(tmp_path):
    found = say(tmp_path, 'name: città\nignore_index: 200\nimages: {train: 5, val: 0}\nclasses:\n'
                          '  - {name: road, color: [1, 2, 3], label_id: 7}\n'
                          '  - {name: car, color: [4, 5, 6], label_id: 0}')
    assert found == Description('città', LabelSet(('road', 'car'), ((1, 2, 3), (4, 5, 6)), 200, (7, 0)),
                                {'train': 5, 'val': 0})


def test_what_it_leaves_out(tmp_path):
    found = say(tmp_path, TWO)
    assert found.name == str(tmp_path) and found.images == {} and found.labels.ignore_index == 255
    assert found.labels.label_ids == ()
    assert say(tmp_path, 'images: {train: 3}').labels is CITYSCAPES


@pytest.mark.parametrize('labels', [
    CITYSCAPES, LabelSet(('no', 'ü: [x], {y}', "'#", '1', 'a' * 300), tuple((i, 0, 255) for i in range(5)), 9),
    LabelSet(tuple(map(str, range(255))), tuple(distinct_colors(255)))])
def test_what_is_written_is_read_back(tmp_path, labels):
    written = Description('yes', labels, {'train': 3, 'test': 1})
    assert say(tmp_path, written.to_yaml()) == written
    lines = written.to_yaml().splitlines()
    assert len(lines) == 4 + labels.num_classes, 'a line for every class'


@pytest.mark.parametrize('text, expected', [
    ('a: [1', 'expected YAML, found while parsing'), ('- 1', 'expected keys like name and classes, found [1]'),
    ('', 'expected keys like name and classes, found None'),
    ('nmae: x', "expected name, ignore_index, classes, images, found 'nmae'; remove that key"),
    ('images: {train: -1}', "key images: expected numbers of train, val, test, train_extra, found {'train': -1}"),
    ('images: {training: 1}', "key images: expected numbers of train, val, test, train_extra, found {'training': 1}"),
    ('images: {train: true}', 'key images: expected numbers of'), ('images: 3', 'key images: expected numbers of'),
    ('ignore_index: 254', "key ignore_index: expected 255 for Cityscapes' classes, found 254; remove it or state the"),
    (TWO + 'ignore_index: 1', 'key ignore_index: expected 2 to 255 (0 to 1 are classes), found 1; 255 is usual'),
    (TWO + 'ignore_index: 256', 'key ignore_index: expected 2 to 255'),
    (TWO + 'ignore_index: x', "key ignore_index: expected 2 to 255 (0 to 1 are classes), found 'x'"),
    ('classes: []', 'key classes: expected a list of 1 to 255 classes, found []; list them'),
    ('classes: {road: 1}', 'key classes: expected a list of 1 to 255 classes'),
    (f'classes: {[0] * 256}', 'key classes: expected a list of 1 to 255 classes'),
    ('classes: [road]', "key classes.0: expected {name: text, color: [R, G, B]} and perhaps label_id: 0-255, "
                        "category: text, found 'road'"),
    ('classes: [{name: no, color: [1, 2, 3]}]', "key classes.0: expected {name: text"),  # YAML reads no as False
    ('classes: [{name: a, color: [1, 2]}]', 'key classes.0: expected'),
    ('classes: [{name: a, color: [1, 2, 256]}]', 'key classes.0: expected'),
    ('classes: [{name: a}]', 'key classes.0: expected'),
    ('classes: [{name: a, color: [1, 2, 3], id: 3}]', 'key classes.0: expected'),
    ('classes: [{name: a, color: [1, 2, 3], label_id: 256}]', 'key classes.0: expected'),
    ('classes: [{name: a, color: [1, 2, 3]}, {name: a, color: [1, 2, 4]}]',
     "key classes: expected different names, found ['a', 'a']; correct it"),
    ('classes: [{name: a, color: [1, 2, 3], label_id: 1}, {name: b, color: [1, 2, 3], label_id: 1}]',
     'key classes: expected different label ids, found [1, 1]; correct it'),
    ('classes: [{name: a, color: [1, 2, 3], label_id: 1}, {name: b, color: [1, 2, 3]}]',
     'key classes: expected a label_id for every class or for none, found 1 for 2 classes; correct it'),
    ('classes: [{name: a, color: [1, 2, 3], category: x}, {name: b, color: [1, 2, 3]}]',
     'key classes: expected a category for every class or for none, found 1 for 2 classes; correct it'),
    ('classes: [{name: a, color: [1, 2, 3], category: 3}]', 'key classes.0: expected')])
def test_what_is_refused(tmp_path, text, expected):
    with pytest.raises(ValueError) as error:
        say(tmp_path, text)
    message = str(error.value)
    assert message.startswith(f'{tmp_path / "dataset.yml"}: ') and expected in message
    assert '\n' not in message and len(message.replace(str(tmp_path), '')) < 300


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / 'dataset.yml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='expected YAML, found'):
        describe(str(tmp_path))


@pytest.mark.parametrize('count', [1, 7, 255])
def test_distinct_colors(count):
    taken = distinct_colors(5)
    colors = distinct_colors(count, taken)
    assert len(colors) == count and len({*colors, *taken, (0, 0, 0)}) == count + 6
    assert np.array(colors).min() >= 0 and np.array(colors).max() <= 255


# ---------------------------------------------------------------- the dataset follows it

def own(toy, ignore_index=255):
    toy.fine('train', 'ulm/a', 'ulm/b')
    labels = [toy.path(f'gtFine/train/ulm/{name}_gtFine_labelTrainIds.png') for name in 'ab']
    for path in labels:
        toy.write(os.path.relpath(path, toy.root), np.full((32, 64), ignore_index, np.uint8))
    with open(toy.path('dataset.yml'), 'w') as file:
        yaml.safe_dump({'ignore_index': ignore_index, **yaml.safe_load(TWO)}, file)
    return labels


def test_the_dataset_has_its_classes_and_its_ignore_value(toy):
    own(toy, 2)
    dataset = CityscapesAutolabeling([], toy.root, coarse_multiple=0)
    assert (dataset.num_classes, dataset.ignore_index, dataset.labels.names) == (2, 2, ('road', 'car'))
    assert (dataset[0]['label'] == 2).all()


def test_a_label_of_another_class_is_told_with_the_fix_for_own_data(toy):
    path = own(toy)[0]
    toy.write(os.path.relpath(path, toy.root), np.full((32, 64), 7, np.uint8))
    with pytest.raises(ValueError) as error:
        CityscapesAutolabeling([], toy.root, coarse_multiple=0)[0]
    assert str(error.value) == (f'{path}: expected train ids 0..1 and 255; found 7; delete that label, if it is there, '
                                f'and run `python tools/prepare_folder.py ... --out {toy.root}` again')


def test_a_missing_label_is_told_with_the_fix_for_own_data(toy):
    os.remove(own(toy)[0])
    with pytest.raises(ValueError) as error:
        CityscapesAutolabeling([], toy.root, coarse_multiple=0)
    summary = str(error.value).split('\n')[0]
    assert summary.endswith(f'and run `python tools/prepare_folder.py ... --out {toy.root}` again')


@pytest.mark.parametrize('key', ['name', 'images', 'classes', 'classes.0', 'ignore_index', 'the file'])
def test_aliases_without_end_are_refused_at_once(tmp_path, key):
    """A few hundred bytes that stand for 9**40 values: an error that showed them would take years."""
    lines = ['a0: &a0 [x]'] + [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 41)]
    bomb = '{' + ', '.join(lines) + '}'
    text = {'classes.0': f'images: {{x: {bomb}}}\nclasses: [*a40]\n',
            'the file': f'- {bomb}\n- *a40\n'}.get(key, f'{key}: {bomb}\n')
    with pytest.raises(ValueError) as error:
        say(tmp_path, text)
    message = str(error.value).replace(str(tmp_path), '')
    assert 'expected' in message and len(message) < 300 and '\n' not in message
