"""The check of a dataset: its counts against NumPy, every kind of mistake by name, and what must not stop it."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import datasets.description
from common import cli
from datasets.description import Description
from datasets.labels import CITYSCAPES
from tests.conftest import PATIENCE, ROOT
from tests.tools import spoil
from tests.tools.label_images import read, save
from tests.tools.spoil import images, labels
from tools import verify_dataset
from tools.report import scan
from tools.verify_dataset import verify

OWN = """
name: fields
classes:
  - {name: soil, color: [120, 80, 40]}
  - {name: crop, color: [30, 160, 30]}
  - {name: weed, color: [200, 40, 200]}
  - {name: stone, color: [90, 90, 90]}
"""


@pytest.fixture
def data(toy, tmp_path):
    return shutil.copytree(toy, tmp_path / 'data')


@pytest.fixture
def own(tmp_path):
    """20 training images of 10 x 10 in classes of their own and 2 for validation, labels in train ids."""
    for split, count in (('train', 20), ('val', 2)):
        for i in range(count):
            label = np.zeros((10, 10), np.uint8)
            label[0, 0] = 2  # in all images, a hundredth of their pixels
            if i == 0:
                label[5:] = 1  # half of one image
            label[-1] = 255 if i % 2 else label[-1]
            save(tmp_path / f'leftImg8bit/{split}/f/{i:02d}_leftImg8bit.png', np.full((10, 10, 3), i, np.uint8))
            save(tmp_path / f'gtFine/{split}/f/{i:02d}_gtFine_labelTrainIds.png', label)
    (tmp_path / 'dataset.yml').write_text(OWN)
    return tmp_path


@pytest.fixture
def official(data, monkeypatch):
    """The toy as if it were Cityscapes: no dataset.yml, and one more image in train_extra expected than there is."""
    (data / 'dataset.yml').unlink()
    small = Description('Cityscapes', CITYSCAPES, {'train': 6, 'val': 3, 'test': 2, 'train_extra': 7})
    for module in (datasets.description, scan, verify_dataset):
        monkeypatch.setattr(module, 'OFFICIAL', small)
    return data


def report(root):
    return json.loads((root / 'dataset_report.json').read_text())


def problems(root, **arguments):
    """What is wrong, after a check that must notice it."""
    assert verify(root, 1, **arguments) == 1
    return report(root)['problems']


# ---------------------------------------------------------------- what is counted

@pytest.mark.parametrize('workers', [1, 2])
def test_sound_data_are_fine_and_counted_as_numpy_does(data, capsys, workers):
    assert verify(str(data), workers) == 0
    found = report(data)
    assert found['fine'] and found['problems'] == []
    for split, paths in (('train', labels(data)), ('val', labels(data, 'val')),
                         ('train_extra', sorted(data.glob('convert_autolabelled/*/*.png')))):
        pixels = [read(path) for path in paths]
        part = found['splits'][split]
        assert part['images'] == part['expected'] == part['labels'] == len(paths) > 0
        assert part['sizes'] == {'64x128': len(paths)} and part['median_size'] == [64, 128]
        for train_id, name in enumerate(CITYSCAPES.names):
            assert part['classes'][name]['pixels'] == sum((label == train_id).sum() for label in pixels)
            assert part['classes'][name]['images'] == sum((label == train_id).any() for label in pixels)
        coverage = [(label != 255).mean() for label in pixels]
        assert part['coverage']['median'] == pytest.approx(np.median(coverage))
        assert part['coverage']['pixels'] == pytest.approx(np.mean(coverage))
        assert part['median_classes'] == np.median([len(set(np.unique(label)) - {255}) for label in pixels])
        middle = os.path.basename(paths[np.argsort(coverage, kind='stable')[(len(paths) - 1) // 2]])
        assert middle.startswith(part['median_image'].split('/')[1])
    assert capsys.readouterr().out.splitlines()[-1].startswith('fine: 15 images, nothing wrong; see ')


def test_rare_and_absent_classes(own, capsys):
    assert verify(own, 1) == 0
    part = report(own)['splits']['train']
    void = 10 * 10  # a row in every second image
    assert part['void_pixels'] == void
    classes = part['classes']
    assert classes['crop'] == {'pixels': 50, 'share': 50 / (2000 - void), 'images': 1, 'image_share': 0.05,
                               'rare': True}
    assert classes['weed'] == {'pixels': 20, 'share': 20 / (2000 - void), 'images': 20, 'image_share': 1.0,
                               'rare': False}
    assert part['rare'] == ['crop'] and part['absent'] == ['stone']
    assert part['coverage'] == {'pixels': 0.95, 'least': 0.9, 'lower_quartile': 0.9, 'median': 0.95,
                                'upper_quartile': 1.0, 'most': 1.0}
    assert part['coverage_histogram'] == [0] * 18 + [10, 10]
    output = capsys.readouterr().out
    crop = next(line for line in output.splitlines() if line.startswith('crop'))
    assert '2.6%    5.0% rare' in crop
    assert 'note: train: no pixel of the classes stone' in output


def test_own_classes_have_their_own_void(own):
    (own / 'dataset.yml').write_text(OWN + 'ignore_index: 9\n')
    found = problems(own)
    assert len(found) == 11 and {problem['kind'] for problem in found} == {'values'}
    assert found[0]['found'] == '255; expected train ids 0..3 and 9'
    assert found[0]['fix'] == f'delete these labels and run `python tools/prepare_folder.py ... --out {own}` again'


def test_void_labels_are_told(own):
    save(labels(own)[3], np.full((10, 10), 255, np.uint8))
    assert verify(own, 1) == 0
    assert 'train: 1 labels are void everywhere; nothing is learned from them' in report(own)['notes']


def test_images_of_many_sizes(own, capsys):
    for i, size in enumerate([(4, 30), (6, 20), (8, 10)]):
        for path in (images(own)[i], labels(own)[i]):
            save(path, np.zeros(size, np.uint8))
    assert verify(own, 1) == 0
    assert report(own)['splits']['train']['sizes'] == {'10x10': 17, '4x30': 1, '6x20': 1, '8x10': 1}
    assert '4 sizes, median 10 x 10' in capsys.readouterr().out


# ---------------------------------------------------------------- what is wrong with a file

CONVERT = 'delete these labels and run `python tools/convert_cityscapes.py --cityscapes_path {root}`'


@pytest.mark.parametrize('mistake, kind, found, fix', [
    (spoil.label_ids, 'label_ids', '(label ids where train ids belong); expected train ids 0..18 and 255', CONVERT),
    (spoil.sixteen_bit, 'mode', 'mode I;16, uint16 (64, 128) (a mask of more than 8 bits)', CONVERT),
    (spoil.colours, 'mode', 'mode RGB, uint8 (64, 128, 3) (colours where ids belong)', CONVERT),
    (spoil.colours_and_alpha, 'mode', 'mode RGBA, uint8 (64, 128, 4) (colours where ids belong)', CONVERT),
    (spoil.other_size, 'size', "(32, 128) (height, width); expected a label of its image's size (64, 128)", CONVERT),
    (spoil.unknown_value, 'values', '77; expected train ids 0..18 and 255', CONVERT),
    (spoil.empty_label, 'undecodable', 'an empty file', CONVERT),
    (spoil.truncated_label, 'undecodable', 'none that can be decoded', CONVERT),
    (spoil.truncated_image, 'image', '2000 bytes that cannot be decoded', 'replace these files by whole ones'),
    (spoil.truncated_jpeg, 'image', 'a JPEG without its end', 'replace these files by whole ones'),
    (spoil.empty_image, 'image', 'an empty file', 'replace these files by whole ones'),
    (spoil.broken_link, 'image', 'a link to /nowhere/a.png, where nothing is', 'replace these files by whole ones'),
    (spoil.no_label, 'unlabelled', 'no label', 'run `python tools/convert_cityscapes.py --cityscapes_path {root}`, or '
                                         'delete these images'),
    (spoil.two_of_a_name, 'twice', 'a second file of this name beside', 'delete all but one'),
    (spoil.train_ids_as_label_ids, 'train_ids', 'as label ids they make most of the image void',
     'replace these files by images of label ids'),
])
def test_one_mistake(data, capsys, mistake, kind, found, fix):
    path = mistake(data)
    (problem,) = problems(data)
    assert (problem['kind'], problem['split'], problem['file']) == (kind, 'train', str(path.relative_to(data)))
    assert found in problem['found'] and fix.format(root=data) in problem['fix']
    output = capsys.readouterr().out
    assert f'train: {scan.KINDS[kind]} (1)\n  {problem["file"]}: {problem["found"]}\n  fix: ' in output
    assert '\n1 problem of 1 kind in 15 images; see ' in output
    assert report(data)['splits']['val']['problems'] == 0


def test_wrong_things_never_stop_the_rest(data):
    first, second, third = labels(data)[:3]
    save(first, read(first)[:32])
    save(second, read(second).astype(np.uint16))
    third.write_bytes(b'')
    images(data)[3].write_bytes(b'')
    found = problems(data)
    assert {problem['kind'] for problem in found} == {'size', 'mode', 'undecodable', 'image'} and len(found) == 4
    train = report(data)['splits']['train']
    assert sum(train['coverage_histogram']) == 6 - 3, 'the label of a broken image is sound'
    assert sum(train['sizes'].values()) == 6 - 1


def test_label_in_another_city_is_found(data):
    path = spoil.label_in_another_city(data)
    missing, stray = problems(data)
    assert (missing['kind'], missing['file']) == ('unlabelled', str(path.relative_to(data)))
    assert stray['kind'] == 'stray' and 'no image leftImg8bit/train/' in stray['found']
    assert f'no label in its folder, but {stray["file"].removeprefix("gtFine/train/")}' == missing['found']


def test_same_stem_in_two_cities_and_names_of_all_kinds(own):
    for city in ('zürich', '東京', 'a <b>&'):
        for kind in ('leftImg8bit', 'gtFine'):
            shutil.copytree(own / kind / 'val/f', own / kind / 'val' / city)
    (own / 'elsewhere').mkdir()
    for kind in ('leftImg8bit', 'gtFine'):
        shutil.move(own / kind / 'val/zürich', own / 'elsewhere' / kind)
        (own / kind / 'val/zürich').symlink_to(own / 'elsewhere' / kind)
    assert verify(own, 1) == 0
    assert report(own)['splits']['val']['images'] == 8
    save(own / 'gtFine/val/東京/01_gtFine_labelTrainIds.png', np.zeros((5, 5), np.uint8))
    (problem,) = problems(own)
    assert problem['file'] == 'gtFine/val/東京/01_gtFine_labelTrainIds.png'


def test_name_that_is_no_utf8(own):
    """OpenCV would take the whole process with it."""
    shutil.copy(images(own)[0], own / 'leftImg8bit/train/f' / os.fsdecode(b'\xff_leftImg8bit.png'))
    shutil.copy(labels(own)[0], own / 'gtFine/train/f' / os.fsdecode(b'\xff_gtFine_labelTrainIds.png'))
    assert verify(own, 2) == 1
    found = report(own)['problems']
    assert {problem['kind'] for problem in found} == {'image', 'undecodable'}
    assert 'a name that is not UTF-8, at which OpenCV crashes' in found[0]['found']


def test_files_of_other_names_are_told(own):
    shutil.copy(images(own)[0], own / 'leftImg8bit/train/photo.JPG')
    assert verify(own, 1) == 0
    assert any('train: 1 other image files in leftImg8bit/train, which are not used, like leftImg8bit/train/photo.JPG'
               in note for note in report(own)['notes'])


def test_only_the_first_of_many_are_shown(own, capsys):
    for path in labels(own)[:13]:
        path.write_bytes(b'')
    assert len(problems(own)) == 13
    output = capsys.readouterr().out
    assert output.count(': an empty file') == 10 and '  ... and 3 more, in dataset_report.json' in output


def test_a_crash_of_the_check_is_one_problem(own, monkeypatch):
    def broken(path, *_):
        if '07' in path:
            raise RuntimeError('unheard of')
        return original(path, *_)

    original = verify_dataset.examine_label
    monkeypatch.setattr(verify_dataset, 'examine_label', broken)
    (problem,) = problems(own)
    assert problem['kind'] == 'error' and problem['found'] == 'RuntimeError: unheard of'
    assert '07_leftImg8bit' in problem['file']


# ---------------------------------------------------------------- splits and counts

def test_counts(data):
    text = (data / 'dataset.yml').read_text()
    (data / 'dataset.yml').write_text(text.replace('train: 6', 'train: 8'))
    assert (data / 'dataset.yml').read_text() != text
    (problem,) = problems(data)
    assert (problem['kind'], problem['found']) == ('count', '6 images; expected 8')
    assert problem['fix'] == f'add the images, or correct `images` in {data}/dataset.yml'


@pytest.mark.parametrize('split', ['train', 'val'])
def test_training_and_validation_must_be_there(own, split):
    shutil.rmtree(own / 'leftImg8bit' / split)
    (problem,) = problems(own)
    assert (problem['kind'], problem['file']) == ('split', f'leftImg8bit/{split}')
    assert problem['found'].startswith('no file <city>/<stem>_leftImg8bit.png (in ')


@pytest.mark.parametrize('split', ['test', 'train_extra'])
def test_what_dataset_yml_promises_must_be_there(own, split):
    assert verify(own, 1) == 0
    (own / 'dataset.yml').write_text(OWN + f'images: {{{split}: 4}}\n')
    (problem,) = problems(own)
    assert (problem['kind'], problem['split']) == ('split', split) and 'expected 4' in problem['found']


def test_test_images_need_no_labels(own):
    shutil.copytree(own / 'leftImg8bit/val', own / 'leftImg8bit/test')
    assert verify(own, 1) == 0
    assert report(own)['splits']['test']['images'] == 2 and report(own)['splits']['test']['labels'] == 0
    images(own, 'test')[0].write_bytes(b'no image')
    assert [problem['found'] for problem in problems(own)] == ['8 bytes that cannot be decoded']


def test_no_labels_at_all_is_one_problem(own):
    shutil.rmtree(own / 'gtFine/val')
    (problem,) = problems(own)
    assert problem['kind'] == 'unlabelled' and problem['file'] == 'gtFine/val'
    assert problem['found'] == 'no label at all <city>/<stem>_gtFine_labelTrainIds.png'


TROISDORF = 'troisdorf/troisdorf_000000_000073_leftImg8bit.png'


def test_cityscapes_may_lack_test_and_the_corrupt_image(official):
    assert verify(official, 1) == 0
    notes = report(official)['notes']
    assert 'test: not there; only predictions for the benchmark need it' in notes
    assert any('troisdorf_000000_000073_leftImg8bit.png is not there, which is as it should be' in n for n in notes)
    next(official.glob('leftImg8bit_trainextra/*/*/*/*.png')).unlink()
    next(official.glob('convert_autolabelled/*/*.png')).unlink()
    assert [problem['found'] for problem in problems(official) if problem['kind'] == 'count'] == [
        '5 images; expected 7']


def test_cityscapes_may_lack_train_extra(official):
    shutil.rmtree(official / 'leftImg8bit_trainextra')
    shutil.rmtree(official / 'convert_autolabelled')
    assert verify(official, 1) == 0
    assert 'train_extra: not there; training needs it only with coarse_multiple > 0' in report(official)['notes']


@pytest.mark.parametrize('labelled', [False, True])
def test_the_corrupt_image_is_named(official, labelled):
    image = official / 'leftImg8bit_trainextra/leftImg8bit/train_extra' / TROISDORF
    image.parent.mkdir()
    image.write_bytes(b'corrupt')
    if labelled:
        save(official / 'convert_autolabelled' / TROISDORF, np.zeros((64, 128), np.uint8))
    found = problems(official)
    assert [problem['kind'] for problem in found] == (['image'] if labelled else ['unlabelled', 'image'])
    for problem in found:
        assert problem['file'].endswith(TROISDORF)
        assert "Cityscapes' download page names this image as corrupt: delete it" in problem['found']


# ---------------------------------------------------------------- the tool itself

def test_a_report_that_cannot_be_written_is_told_at_once(own, monkeypatch):
    monkeypatch.setattr(verify_dataset, 'results_of', None)  # nothing must be read
    blocked = own / 'dataset.yml/reports'
    with pytest.raises(OSError, match=r'^[^\n]*reports: expected a folder where dataset_report\.html and \.json can '
                                      r'be written, found "[^\n]*"; give another one as --report_dir$'):
        verify(own, 1, report_dir=blocked)


def test_reports_elsewhere(own, tmp_path):
    assert verify(own, 1, report_dir=tmp_path / 'reports') == 0
    assert {path.name for path in (tmp_path / 'reports').iterdir()} == {'dataset_report.html', 'dataset_report.json'}
    assert not (own / 'dataset_report.json').exists()


def test_bad_arguments(own, tmp_path):
    with pytest.raises(OSError, match=r'^--dataset_root /nowhere: expected the folder of a dataset, found nothing; '):
        verify('/nowhere')
    with pytest.raises(ValueError, match=r'^--num_workers: expected 0 or more, found -1$'):
        verify(own, -1)
    (own / 'dataset.yml').write_text('classes: 7\n')
    with pytest.raises(ValueError, match=r'dataset\.yml: key classes: expected a list'):
        verify(own)


def test_interrupted_check_leaves_no_report(own, monkeypatch, capsys):
    def interrupted(path, *_):
        raise KeyboardInterrupt

    before = {path: path.stat().st_mtime_ns for path in own.rglob('*')}
    with monkeypatch.context() as patch:
        patch.setattr(verify_dataset, 'examine_label', interrupted)
        with pytest.raises(SystemExit) as stop:
            cli.run(verify_dataset.main, ['--dataset_root', str(own), '--num_workers', '1'])
    assert stop.value.code == 130
    assert {path: path.stat().st_mtime_ns for path in own.rglob('*')} == before
    assert 'the next run starts over' in capsys.readouterr().out
    assert verify(own, 1) == 0


def test_command_line(own):
    truncated = labels(own)[4]
    truncated.write_bytes(truncated.read_bytes()[:40])
    command = [sys.executable, ROOT / 'tools/verify_dataset.py', '--dataset_root', own]
    done = subprocess.run(command, cwd=own, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert done.stdout.splitlines()[-1].startswith('1 problem of 1 kind in 22 images; see ')
    done = subprocess.run([*command[:-1], own / 'none'], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and done.stderr.startswith(f'error: --dataset_root {own}/none: expected the folder')
