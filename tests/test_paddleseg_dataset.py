"""PaddleSeg's own datasets in training, evaluation and prediction, through the command lines."""
import random
import shutil

import cv2
import numpy as np
import paddle
import paddleseg.datasets
import paddleseg.transforms as T
import pytest
import yaml

import train
from common.builder import Builder
from common.config import Config
from common.errors import UserError
from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.labels import CITYSCAPES
from datasets.paddleseg_dataset import PaddleSegDataset, adapted
from tests.test_paddleseg_models import check_run, run, write_config

ENET = {'type': 'ENet', 'num_classes': 19}


@pytest.fixture
def lists(toy, tmp_path):
    """Keys of a `Dataset` for train and val, with lists of the toy data."""
    sections = {}
    for split in ('train', 'val'):
        images = sorted((toy / 'leftImg8bit' / split).rglob('*.png'))
        lines = [f'{image.relative_to(toy)} ' + str(image.relative_to(toy)).replace('leftImg8bit/', 'gtFine/').replace(
            '_leftImg8bit', '_gtFine_labelTrainIds') for image in images]
        (tmp_path / f'{split}.txt').write_text('\n'.join(lines))
        sections[split] = {'type': 'Dataset', 'dataset_root': str(toy), 'num_classes': 19, 'mode': split,
                           f'{split}_path': str(tmp_path / f'{split}.txt')}
    return sections


def config_of_lists(path, toy, lists, **changes):
    config = yaml.safe_load(write_config(path, toy, ENET).read_text())
    for split, section in lists.items():
        config[f'{split}_dataset'] = {'transforms': config[f'{split}_dataset']['transforms'], **section}
    config['train_dataset'].update(changes)
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_dataset_of_lists_trains_evaluates_predicts_and_resumes(toy, tmp_path, lists, capsys):
    check_run(config_of_lists(tmp_path / 'lists.yml', toy, lists), toy, tmp_path, capsys)


def test_workers_give_the_same_run(toy, tmp_path, lists):
    config = config_of_lists(tmp_path / 'lists.yml', toy, lists)
    for workers in (0, 2):
        assert run(train.main, '--config', config, '--save_dir', tmp_path / str(workers), '--num_workers',
                   workers) is None
    first, second = (paddle.load(str(tmp_path / f'{workers}/iter_2/model.pdparams')) for workers in (0, 2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def transforms():
    return [T.ResizeStepScaling(0.5, 2.0, 0.25), T.RandomPaddingCrop([64, 64]), T.RandomHorizontalFlip(),
            T.RandomDistort(), T.Normalize()]


def test_a_sample_depends_on_seed_epoch_and_index_alone(toy):
    dataset = adapted(paddleseg.datasets.Cityscapes(transforms(), str(toy), 'train'))
    assert isinstance(dataset, PaddleSegDataset) and len(dataset) == 6
    first = dataset[(3, 2)]
    state = random.getstate(), np.random.get_state()[1].tolist()
    dataset[(4, 2)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    random.seed(1)
    np.random.seed(1)
    again = dataset[(3, 2)]
    assert np.array_equal(first['img'], again['img']) and np.array_equal(first['label'], again['label'])
    assert first['img'].dtype == np.float32 and first['img'].shape == (3, 64, 64)
    assert first['label'].dtype == np.int64 and first['label'].shape == (64, 64) and set(first) == {'img', 'label'}
    assert not np.array_equal(first['img'], dataset[(4, 2)]['img'])
    dataset.seed = 1
    assert not np.array_equal(first['img'], dataset[(3, 2)]['img'])
    assert dataset.files(3, 2) == tuple(dataset.file_list[2])


def test_validation_samples_are_those_of_our_dataset(toy):
    steps = [T.Resize((96, 48)), T.Normalize()]
    theirs = adapted(paddleseg.datasets.Cityscapes(steps, str(toy), 'val'))
    ours = CityscapesAutolabeling(steps, str(toy), 'val')
    assert len(theirs) == len(ours) == 3 and (theirs.num_classes, theirs.ignore_index) == (19, 255)
    for i in range(3):
        assert np.array_equal(theirs[i]['img'], ours[i]['img']) and np.array_equal(theirs[i]['label'], ours[i]['label'])
        assert theirs[i]['trans_info'] == ours[i]['trans_info'] and theirs[i]['label'].shape == (64, 128)


def test_our_own_dataset_and_other_components_are_left_alone(toy):
    ours = CityscapesAutolabeling([], str(toy), 'val')
    assert adapted(ours) is ours and adapted(3) == 3


def test_names_and_colours(toy, tmp_path, lists):
    builder = Builder(Config(write_config(tmp_path / 'a.yml', toy, ENET)))
    assert builder.labels == CITYSCAPES
    labels = Builder(Config(config_of_lists(tmp_path / 'b.yml', toy, lists))).labels
    assert labels.names[:2] == ('class 0', 'class 1') and len(set(labels.palette)) == 19


def broken(toy, tmp_path, lists):
    """The toy data copied, and a `Dataset` on the copy."""
    shutil.copytree(toy, tmp_path / 'copy')
    section = {**lists['train'], 'dataset_root': str(tmp_path / 'copy'), 'transforms': [T.Normalize()]}
    dataset = adapted(paddleseg.datasets.Dataset(**{key: v for key, v in section.items() if key != 'type'}))
    return dataset, *dataset.file_list[0]


@pytest.mark.parametrize('kind, text', [
    ('no image', 'expected an image, found none'), ('colours', r'expected a label of one channel, found an array'),
    ('values', 'expected class ids 0..18 and 255, found 77'), ('size', r'expected a label of its image.s size')])
def test_a_file_that_does_not_fit_is_named(kind, text, toy, tmp_path, lists):
    dataset, image, label = broken(toy, tmp_path, lists)
    dataset[0]
    if kind == 'no image':
        with open(image, 'wb') as file:
            file.write(b'no image')
    else:
        cv2.imwrite(label, {'colours': np.zeros((64, 128, 3), np.uint8), 'size': np.zeros((60, 128), np.uint8),
                            'values': np.full((64, 128), 77, np.uint8)}[kind])
    with pytest.raises(UserError, match=text) as error:
        dataset[0]
    assert str(error.value).startswith(f'{image if kind == "no image" else label}: ')


def test_a_list_that_is_missing_is_one_line(toy, tmp_path, lists, capsys):
    config = config_of_lists(tmp_path / 'lists.yml', toy, lists, train_path='nowhere.txt')
    assert run(train.main, '--config', config, '--save_dir', tmp_path / 'run') == 1
    assert 'nowhere.txt' in capsys.readouterr().err.splitlines()[-1]


def test_an_empty_list_is_told(toy, tmp_path, lists, capsys):
    (tmp_path / 'train.txt').write_text('')
    config = config_of_lists(tmp_path / 'lists.yml', toy, lists)
    assert run(train.main, '--config', config, '--save_dir', tmp_path / 'run') == 1
    assert 'expected images of mode train in' in capsys.readouterr().err.splitlines()[-1]


def test_class_uniform_sampling_is_that_of_our_dataset(toy, monkeypatch):
    """The same files and crops as CityscapesAutolabeling, with the seeds that it has."""
    monkeypatch.setattr('datasets.paddleseg_dataset._TRANSFORMS', 3)
    steps = [T.ResizeStepScaling(0.75, 1.5, 0.25), T.RandomPaddingCrop([32, 32]), T.RandomHorizontalFlip(),
             T.Normalize()]
    theirs = adapted(paddleseg.datasets.Cityscapes(steps, str(toy), 'train'), 0.5)
    ours = CityscapesAutolabeling(steps, str(toy), 'train', coarse_multiple=0, class_uniform=0.5)
    plain = adapted(paddleseg.datasets.Cityscapes(steps, str(toy), 'train'))
    for dataset in (theirs, ours, plain):
        dataset.seed = 3
    drawn = [(epoch, index) for epoch in range(2) for index in range(6)]
    assert [theirs.files(*sample) for sample in drawn] == [tuple(ours.files(*sample)) for sample in drawn]
    assert [theirs.files(*sample) for sample in drawn] != [plain.files(*sample) for sample in drawn]
    for sample in drawn:
        assert np.array_equal(theirs[sample]['img'], ours[sample]['img'])
        assert np.array_equal(theirs[sample]['label'], ours[sample]['label'])


def test_class_uniform_sampling_by_the_config(toy, tmp_path, lists, capsys):
    check_run(config_of_lists(tmp_path / 'lists.yml', toy, lists, class_uniform=0.5), toy, tmp_path, capsys)
    config = config_of_lists(tmp_path / 'lists.yml', toy, lists, class_uniform=2)
    assert run(train.main, '--config', config, '--save_dir', tmp_path / 'no') == 1
    assert "key 'train_dataset.class_uniform': expected a number of at least 0" in capsys.readouterr().err


def test_ema_and_accumulation_resume_with_the_same_bits(toy, tmp_path):
    """Of a network with dropout and auxiliary outputs."""
    model = {'type': 'PPLiteSeg', 'backbone': {'type': 'STDC1'}, 'arm_out_chs': [16, 16, 16],
             'seg_head_inter_chs': [16, 16, 16], 'cm_out_ch': 16}
    config = write_config(tmp_path / 'a.yml', toy, model, 3, options={'ema': 0.9})
    common = ['--config', config, '--save_interval', 1, '--accum_steps', 2]
    assert run(train.main, *common, '--save_dir', tmp_path / 'run') is None
    shutil.copytree(tmp_path / 'run/iter_1', tmp_path / 'again/iter_1')
    assert run(train.main, *common, '--save_dir', tmp_path / 'again', '--resume', 'auto') is None
    for name in ('model.pdparams', 'ema_model.pdparams'):
        first, second = (paddle.load(str(tmp_path / f'{folder}/iter_2/{name}')) for folder in ('run', 'again'))
        assert all(np.array_equal(np.asarray(first[key]), np.asarray(second[key])) for key in first)


@pytest.mark.parametrize('name', ['EG1800', 'SUPERVISELY'])
def test_labels_are_moved_with_their_images(name, tmp_path):
    """PaddleSeg 2.8 moves the images of its portrait datasets alone. Images show their labels, white on black."""
    if name == 'EG1800':
        folders, lists = ('Images', 'Labels'), {split: f'eg1800_{split}.txt' for split in ('train', 'test')}
    else:
        folders = 'a/img', 'a/ann'
        lists = {split: f'supervisely_face_{split}_easy.txt' for split in ('train', 'test')}
    label = np.zeros((160, 240), np.uint8)
    label[20:90, 150:230] = 1
    for folder, values in zip(folders, (label * 255, label)):
        (tmp_path / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / 'x.png'), values)
    for file in lists.values():
        (tmp_path / file).write_text('x.png\n' if name == 'EG1800' else 'top/a/img/x.png\n')
    normalize = T.Normalize(mean=[0, 0, 0], std=[1, 1, 1])
    moved = [T.RandomAffine(size=(224, 224), translation_offset=40, max_rotation=30), T.RandomHorizontalFlip(1)]
    scaled = [T.ScalePadding((224, 224), label_padding_value=0), normalize]
    kind = getattr(paddleseg.datasets, name)
    for mode, common in (('train', moved), ('val', scaled)):
        dataset = adapted(kind(common, [normalize], [normalize], str(tmp_path), mode))
        sample = dataset[(0, 0)]
        shown = sample['img'].mean(axis=0) > (0.5 if sample['img'].max() <= 1 else 127.5)
        overlap = (shown & (sample['label'] == 1)).sum() / (shown | (sample['label'] == 1)).sum()
        # PaddleSeg grows the labels of 70 x 80 pixels by 2 on every side; unmoved they would hardly meet
        assert sample['img'].shape == (3, 224, 224) and overlap > (70 * 80) / (74 * 84) - 0.1, (mode, overlap)
