"""Bad input that users of PaddleSeg meet: one line each, before training starts or with the file that is wrong."""
import shutil
import tempfile

import cv2
import numpy as np
import pytest
import yaml

import train
import val
from tests.test_paddleseg_models import run, write_config

ENET = {'type': 'ENet', 'num_classes': 19}
PSPNET = {'type': 'PSPNet', 'backbone': {'type': 'ResNet18_vd', 'output_stride': 8}, 'pp_out_channels': 16}


def last_line(config, tmp_path, capsys, *more):
    folder = tempfile.mkdtemp(dir=tmp_path)  # its lock is released with the process
    assert run(train.main, '--config', config, '--save_dir', folder, *more) == 1
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith('error: ') for line in lines) == 1 and lines[-1].startswith('error: ')
    return lines[-1]


@pytest.mark.parametrize('opts, text', [
    # PaddleX, PaddleRS, and other versions of PaddleSeg
    (['Global.model=pp'], "key 'Global': expected a known name, found 'Global'"),
    (['train_dataset.type=SegDataset'], "key 'train_dataset.type': expected a registered type, found 'SegDataset'; "
                                        'did you mean'),
    (['model.type=PPLiteSegV2'], "found 'PPLiteSegV2'; did you mean PPLiteSeg"),
    (['model.type=BITSeg'], "key 'model.type': expected a registered type, found 'BITSeg'"),
    (['loss.types.0.type=OhemCELoss'], "key 'loss.types.0.type': expected a registered type, found 'OhemCELoss'; did"),
    (['loss.types.0.min_kepd=1'], "key 'loss.types.0.min_kepd': expected a known name, found 'min_kepd'"),
    (['train_dataset.transforms.0.type=MultiLabel'], "key 'train_dataset.transforms.0.type': expected a registered"),
    (['to_static_training=True'], "key 'to_static_training': expected it to be absent"),
    (['model.backbone={"type": "ResNet18_vd", "output_strid": 8}', 'model.type=PSPNet'],
     "key 'model.backbone.output_strid': expected a known name, found 'output_strid'; did you mean output_stride?"),
    (['optimizer.type=AdamW2'], "key 'optimizer.type': expected a registered type, found 'AdamW2'; did you mean AdamW"),
    (['lr_scheduler.type=Poly'], "key 'lr_scheduler.type': expected a registered type, found 'Poly'"),
    (['train_dataset.edge_width=2'], "key 'train_dataset.edge_width': expected a known name"),
])
def test_names_of_other_versions(opts, text, toy, tmp_path, capsys):
    config = write_config(tmp_path / 'a.yml', toy, ENET)
    assert text in last_line(config, tmp_path, capsys, '--opts', *opts)


@pytest.mark.parametrize('opts, text', [
    (['model.backbone_indices=[7]'], 'PSPNet: expected values that fit together, found some that do not (IndexError: '),
    (['model.type=SegmentationTransformer'], 'SegmentationTransformer: expected values that fit together, found '
                                             'some that do not (AttributeError: '),
    (['model.backbone.data_format=NCWH'], 'data_format')])
def test_values_that_do_not_fit_a_model(opts, text, toy, tmp_path, capsys):
    model = {'type': 'PSPNet', 'backbone': {'type': 'ResNet18_vd'}}
    line = last_line(config := write_config(tmp_path / 'a.yml', toy, model, 2), tmp_path, capsys, '--opts', *opts)
    assert line.startswith(f'error: {config}: ') and text in line


@pytest.mark.parametrize('name', ['Cityscapes', 'ADE20K', 'PascalVOC', 'OpticDiscSeg', 'Dataset'])
def test_a_folder_that_is_missing_is_not_downloaded(name, toy, tmp_path, capsys):
    classes = {'ADE20K': 150, 'PascalVOC': 21, 'OpticDiscSeg': 2}.get(name, 19)
    config = yaml.safe_load(write_config(tmp_path / 'a.yml', toy, {'type': 'ENet', 'num_classes': classes}).read_text())
    config['train_dataset'].update(type=name, dataset_root=str(tmp_path / 'nowhere'))
    if name == 'Dataset':
        config['train_dataset'].update(num_classes=19, train_path='train.txt')
    del config['val_dataset']
    (tmp_path / 'a.yml').write_text(yaml.safe_dump(config))
    line = last_line(tmp_path / 'a.yml', tmp_path, capsys)
    assert line.startswith(f'error: {tmp_path}/nowhere: expected the folder of {name}, found nothing; correct dataset')
    if name not in ('Cityscapes', 'Dataset'):
        del config['train_dataset']['dataset_root']
        (tmp_path / 'a.yml').write_text(yaml.safe_dump(config))
        assert f"{name}: expected its key 'dataset_root', the folder" in last_line(tmp_path / 'a.yml', tmp_path, capsys)


@pytest.mark.parametrize('name, file', [('OpticDiscSeg', 'train_list.txt'), ('PPHumanSeg14K', 'train.txt'), (
    'PascalVOC', 'VOC2012/ImageSets/Segmentation/train.txt'), ('ADE20K', 'images/training')])
def test_a_folder_without_its_lists_is_named(name, file, toy, tmp_path, capsys):
    (tmp_path / 'data').mkdir()
    classes = {'ADE20K': 150, 'PascalVOC': 21}.get(name, 2)
    config = yaml.safe_load(write_config(tmp_path / 'a.yml', toy, {'type': 'ENet', 'num_classes': classes}).read_text())
    config['train_dataset'].update(type=name, dataset_root=str(tmp_path / 'data'))
    del config['val_dataset']
    (tmp_path / 'a.yml').write_text(yaml.safe_dump(config))
    assert last_line(tmp_path / 'a.yml', tmp_path, capsys).startswith(
        f'error: {tmp_path}/data/{file}: expected a file that {name} reads, found nothing')


def test_a_label_that_is_missing_does_not_shift_the_others(toy, tmp_path, capsys):
    """PaddleSeg pairs two sorted lists: without one label, every later image would get the label of another."""
    shutil.copytree(toy, tmp_path / 'copy')
    label = sorted((tmp_path / 'copy/gtFine/train').rglob('*labelTrainIds.png'))[0]
    label.unlink()
    assert run(train.main, '--config', write_config(tmp_path / 'a.yml', tmp_path / 'copy', ENET), '--save_dir',
               tmp_path / 'run') == 1
    text = capsys.readouterr().err
    assert f'{label.name.removesuffix("_gtFine_labelTrainIds.png")}: no label' in text and 'internal' not in text


def test_labels_above_the_classes_and_of_another_size(toy, tmp_path, capsys):
    shutil.copytree(toy, tmp_path / 'copy')
    config = write_config(tmp_path / 'a.yml', tmp_path / 'copy', ENET)
    labels = sorted((tmp_path / 'copy/gtFine/train').rglob('*labelTrainIds.png'))
    for label in labels:
        cv2.imwrite(str(label), np.full((64, 128), 33, np.uint8))
    line = last_line(config, tmp_path, capsys, '--num_workers', 0)
    assert '_gtFine_labelTrainIds.png: expected class ids 0..18 and 255, found 33' in line
    for label in labels:  # a crop of both would be of one size
        cv2.imwrite(str(label), np.zeros((60, 100), np.uint8))
    assert '_gtFine_labelTrainIds.png: expected a label of its image' in last_line(config, tmp_path, capsys,
                                                                                    '--num_workers', 0)


@pytest.mark.parametrize('content', [None, b'no image'])
def test_a_label_that_cannot_be_read(content, toy, tmp_path, capsys):
    root = tmp_path / 'data'
    (root / 'images').mkdir(parents=True)
    cv2.imwrite(str(root / 'images/a.jpg'), np.zeros((64, 64, 3), np.uint8))
    (root / 'train_list.txt').write_text('images/a.jpg a.png\n' * 2)
    if content:
        (root / 'a.png').write_bytes(content)
    config = yaml.safe_load(write_config(tmp_path / 'a.yml', toy, {'type': 'ENet', 'num_classes': 2}).read_text())
    config['train_dataset'].update(type='OpticDiscSeg', dataset_root=str(root))
    del config['val_dataset']
    (tmp_path / 'a.yml').write_text(yaml.safe_dump(config))
    line = last_line(tmp_path / 'a.yml', tmp_path, capsys, '--num_workers', 0)
    assert line.startswith(f'error: {root}/a.png: expected a label, found none that can be decoded or nothing at all')


def test_a_validation_label_of_another_size(toy, tmp_path, capsys):
    shutil.copytree(toy, tmp_path / 'copy')
    config = write_config(tmp_path / 'a.yml', tmp_path / 'copy', ENET)
    assert run(train.main, '--config', config, '--save_dir', tmp_path / 'run', '--iters', 1) is None
    label = sorted((tmp_path / 'copy/gtFine/val').rglob('*labelTrainIds.png'))[0]
    cv2.imwrite(str(label), np.zeros((60, 100), np.uint8))
    assert run(val.main, '--config', config, '--model_path', tmp_path / 'run/iter_1/model.pdparams') == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('error: ') and '(60, 100)' in line and '(64, 128)' in line


def test_an_image_larger_than_its_padding(toy, tmp_path, capsys):
    config = yaml.safe_load(write_config(tmp_path / 'a.yml', toy, ENET).read_text())
    config['val_dataset']['transforms'].insert(0, {'type': 'Padding', 'target_size': [96, 96]})
    (tmp_path / 'a.yml').write_text(yaml.safe_dump(config))
    line = last_line(tmp_path / 'a.yml', tmp_path, capsys, '--do_eval', '--iters', 1)
    assert '_leftImg8bit.png: expected an image that fits the transforms' in line
    assert line.endswith('correct val_dataset.transforms')


def test_a_batch_of_one_behind_a_pooling(toy, tmp_path, capsys):
    config = write_config(tmp_path / 'a.yml', toy, PSPNET, 2)
    line = last_line(config, tmp_path, capsys, '--batch_size', 1)
    assert line.startswith('error: --batch_size 1: expected at least 2, found 1 and a batch norm of 128 channels')
    assert run(train.main, '--config', config, '--save_dir', tmp_path / 'frozen', '--batch_size', 1, '--opts',
               'options.freeze_batch_norm=True') is None
    assert run(train.main, '--config', write_config(tmp_path / 'b.yml', toy, ENET), '--save_dir', tmp_path / 'large',
               '--batch_size', 1) is None  # no pooling
