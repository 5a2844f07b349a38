"""Configs: inheritance, overrides, and the refusal of what does not fit, before anything is built."""
import shutil
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml

from common.builder import Builder
from common.config import Config
from inference.evaluator import evaluate
from losses import DiceLoss
from models.mscale_ocrnet import MscaleOCRNet
from tests import rounding
from tests.losses import plain
from training import checkpoint

CONFIGS = Path(__file__).parents[2] / 'configs'
RECIPE = CONFIGS / 'mscale_ocr_cityscapes_autolabel_mapillary.yml'


def write(tmp_path, text):
    path = tmp_path / 'mine.yml'
    path.write_text(f'_base_: {RECIPE}\n{text}')
    return path


def refusal(path, **kwargs):
    with pytest.raises(ValueError) as error:
        Config(path, **kwargs)
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('path', sorted(set(CONFIGS.glob('*.yml')) - {CONFIGS / 'model_zoo.yml'}), ids=lambda p: p.name)
def test_every_config_is_valid_and_opens_with_its_command(path):
    Config(path)
    assert path.read_text().startswith('# ') and '.py --config configs/' in path.read_text()


def test_the_recipe_is_the_published_one():
    """Figures of the published config, stated here independently of the file."""
    dic = Config(RECIPE).dic
    assert (dic['batch_size'], dic['iters']) == (1, 65000)
    assert dic['model']['n_scales'] == [0.5, 1.0, 2.0] and dic['model']['backbone']['type'] == 'HRNet_W48_NV'
    assert dic['optimizer'] == {'type': 'sgd', 'momentum': 0.9, 'weight_decay': 1e-4}
    assert dic['lr_scheduler'] == {'type': 'PolynomialDecay', 'learning_rate': 0.005, 'power': 2, 'end_lr': 0}
    assert dic['loss']['coef'] == [1, 0.4, 0.05, 0.05] * 2
    types = dic['loss']['types']
    assert [t['type'] for t in types] == ['DiceLoss'] * 4 + ['BootstrappedCrossEntropyLoss'] * 4
    assert all((t['min_K'], t['loss_th']) == (100000, 0.05) for t in types[4:])
    transforms = {t['type']: t for t in dic['train_dataset']['transforms']}
    assert list(transforms) == ['ResizeStepScaling', 'RandomPaddingCrop', 'RandomHorizontalFlip', 'RandomDistort',
                                'Normalize']
    assert transforms['RandomPaddingCrop']['crop_size'] == [2048, 1024]
    assert transforms['RandomDistort']['hue_range'] == 63


def test_the_five_scale_config_differs_in_nothing_else():
    three = Config(RECIPE).dic
    five = Config(CONFIGS / 'mscale_ocr_cityscapes_autolabel_mapillary_ms_val.yml').dic
    assert five['model'].pop('n_scales') == [0.5, 1.0, 1.5, 2.0, 2.5]
    del three['model']['n_scales']
    assert five == three


def test_overrides(tmp_path):
    dic = Config(RECIPE, opts=['model.n_scales=[1.0]', 'train_dataset.transforms.1.crop_size=[64, 32]',
                               'val_dataset.dataset_root=/data/city=scapes', 'lr_scheduler.power=0.9',
                               'model.pretrained=null'], iters=7, batch_size=3, learning_rate=0.1).dic
    assert dic['model']['n_scales'] == [1.0] and dic['model']['pretrained'] is None
    assert dic['train_dataset']['transforms'][1]['crop_size'] == [64, 32]
    assert dic['val_dataset']['dataset_root'] == '/data/city=scapes'
    assert (dic['iters'], dic['batch_size'], dic['lr_scheduler']['learning_rate']) == (7, 3, 0.1)
    assert dic['lr_scheduler']['power'] == 0.9


@pytest.mark.parametrize('text, expected', [
    ('itres: 5', ["'itres'", 'did you mean iters?']),
    ('model: {n_scale: [1.0]}', ["'model.n_scale'", 'did you mean n_scales']),
    ('model: {backbone: {type: HRNet_W48}, ocr_mid_chanels: 3}', ["'model.ocr_mid_chanels'", 'ocr_mid_channels']),
    ('model: {type: MscaleOCRnet}', ["'model.type'", 'expected a registered type', 'MscaleOCRNet']),
    ('model: {backbone: {type: HRNet_W48_NVV}}', ["'model.backbone.type'", 'HRNet_W48_NV']),
    ('train_dataset: {type: CityscapesAutolabelling}', ['CityscapesAutolabeling']),
    ('train_dataset: {transforms: [{type: Normalise}]}', ["'train_dataset.transforms.0.type'", 'Normalize']),
    ('train_dataset: {coarse_multipel: 2}', ['coarse_multiple']),
    ('loss: {types: [{type: DiceLos}], coef: [1]}', ["'loss.types.0.type'", 'DiceLoss']),
    ('loss: {types: [{type: DiceLoss}, {type: DiceLoss}], coef: [1]}', ["'loss.coef'", 'expected 1 loss or as many']),
    ('loss: {coef: [1, a]}', ["'loss.coef.1'", 'expected a number', "'a'"]),
    ('optimizer: {type: sgd, momentun: 0.9}', ['momentun', 'momentum']),
    ('optimizer: {type: sgdd}', ['optimizer.type', 'SGD']),
    ('lr_scheduler: {powr: 1}', ['lr_scheduler.powr', 'power']),
    ('lr_scheduler: {type: PolyDecay}', ['PolynomialDecay']),
    ('lr_scheduler: {learning_rate: 1e-3}', ["'lr_scheduler.learning_rate'", 'expected a number', '0.001']),
    ('iters: many', ["'iters'", 'expected an integer', "'many'"]),
    ('iters: 1.5', ["'iters'", 'expected an integer', '1.5']),
    ('batch_size: 0', ["'batch_size'", 'at least 1']),
    ('batch_size: true', ["'batch_size'", 'expected an integer']),
    ('model: {n_scales: 1.0}', ["'model.n_scales'", 'expected a list']),
    ('model: {num_classes: nineteen}', ["'model.num_classes'", 'expected an integer']),
    ('model: {backbone: HRNet_W48_NV}', ["'model.backbone'", 'expected a mapping']),
    ('model: 3', ["'model'", 'expected a mapping']),
    ('val_dataset: {mode: 3}', ["'val_dataset.mode'", 'expected text']),
    ('test_config: {flip: true}', ["'test_config.flip'", 'flip_horizontal']),
])
def test_what_does_not_fit_is_refused_with_key_file_and_names(tmp_path, text, expected):
    path = write(tmp_path, text)
    message = refusal(path)
    assert message.startswith(f'{path}: key ')
    for part in expected:
        assert part in message


def test_the_file_named_is_the_one_that_says_it(tmp_path):
    write(tmp_path, 'model: {n_scale: [1.0]}')
    derived = tmp_path / 'derived.yml'
    derived.write_text('_base_: mine.yml\niters: 3\n')
    assert refusal(derived).startswith(f'{tmp_path / "mine.yml"}: key ')


@pytest.mark.parametrize('opts, text', [('model.n_scales', 'found no "="'), ('iters={1', 'check brackets'),
                                         ('modle.n_scales=1', 'did you mean model?'),
                                        ('model.n_scale=[1.0]', 'did you mean n_scales'),
                                        ('train_dataset.transforms.9.type=x', '9'),
                                        ('options.emma=0.9', 'did you mean ema?'),
                                        ('optoins.ema=0.9', 'did you mean options?'),
                                        ('model.backbone.type.x=1', 'cannot be set there'),
                                        ('test_config.scale=1', 'did you mean scales'),
                                        ('iters=abc', 'expected an integer')])
def test_bad_overrides(opts, text):
    message = refusal(RECIPE, opts=[opts])
    assert message.startswith(f'--opts {opts}') and text in message


def test_options_may_set_what_the_config_leaves_out(tiny_config):
    dic = Config(tiny_config, opts=['options.ema=0.99', 'test_config.is_slide=False',
                                    'lr_scheduler.warmup_iters=2']).dic
    assert dic['options'] == {'ema': 0.99} and dic['test_config'] == {'is_slide': False}
    assert dic['lr_scheduler']['warmup_iters'] == 2 and 'learning_rate' in dic['lr_scheduler']


def test_files_that_are_no_configs(tmp_path):
    assert 'found nothing' in refusal(tmp_path / 'none.yml')
    (tmp_path / 'x.yml').write_text('a: [1\nb: 2')
    assert 'line 2 is not valid YAML' in refusal(tmp_path / 'x.yml')
    (tmp_path / 'x.yml').write_text('- 1')
    assert 'expected a mapping of keys, found list' in refusal(tmp_path / 'x.yml')
    (tmp_path / 'x.yml').write_text('_base_: gone.yml')
    assert "x.yml: key '_base_': expected the path of a config" in refusal(tmp_path / 'x.yml')
    (tmp_path / 'x.yml').write_text('iters: 3')
    assert "'batch_size'" in refusal(tmp_path / 'x.yml')


def test_builds_through_paddleseg_with_our_classes(tiny_config, recwarn):
    builder = Builder(Config(tiny_config))
    assert type(builder.model) is MscaleOCRNet and type(builder.loss['types'][0]) is DiceLoss
    assert type(builder.optimizer).__name__ == 'Momentum'
    assert len(builder.train_dataset) == 12 and len(builder.val_dataset) == 3
    assert builder.labels.names[0] == 'road' and builder.labels.num_classes == 19
    assert not [w for w in recwarn if 'exists already' in str(w.message)]


# ---------------------------------------------------------------- classes come from the dataset

THREE = """classes:
  - {name: road, color: [9, 8, 7]}
  - {name: car, color: [0, 0, 142]}
  - {name: sky, color: [1, 1, 1]}
"""


def dataset(folder, ignore_index=255, classes=THREE, size=(32, 48)):
    """A dataset of three classes, one image of each split, its labels 0, 1, 2 and ignore_index."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for path, shape, high in ((f'leftImg8bit/{split}/x/a_leftImg8bit.png', (*size, 3), 256),
                                  (f'gtFine/{split}/x/a_gtFine_labelTrainIds.png', size, 3)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, high, shape, np.uint8)
            if high == 3:
                pixels[:4] = ignore_index
            cv2.imwrite(str(folder / path), pixels)
    (folder / 'dataset.yml').write_text(f'name: three\nignore_index: {ignore_index}\n{classes}')
    return folder


def opts(train, val=None):
    return [f'train_dataset.dataset_root={train}', f'val_dataset.dataset_root={val or train}',
            'train_dataset.coarse_multiple=0']


def test_num_classes_follows_the_dataset(tiny_config, tmp_path):
    assert 'num_classes' not in Config(tiny_config).dic['model']
    assert Builder(Config(tiny_config)).model.ocrnet.head.cls_head.weight.shape[0] == 19
    builder = Builder(Config(tiny_config, opts=opts(dataset(tmp_path / 'three'))))
    assert builder.model.ocrnet.head.cls_head.weight.shape[0] == 3
    assert builder.labels.names == ('road', 'car', 'sky') and builder.labels.palette[0] == (9, 8, 7)


def test_num_classes_that_the_dataset_does_not_have(tiny_config, tmp_path):
    root = dataset(tmp_path / 'three')
    builder = Builder(Config(tiny_config, opts=[*opts(root), 'model.num_classes=19']))
    with pytest.raises(ValueError) as error:
        _ = builder.model
    assert str(error.value) == (f"{tiny_config}: key 'model.num_classes': expected 3, the classes of "
                                f'train_dataset.dataset_root {root}, found 19; remove the key or correct the folder')


@pytest.mark.parametrize('change, count', [(('name: car', 'name: lorry'), 3),
                                           (('  - {name: sky, color: [1, 1, 1]}\n', ''), 2)])
def test_validation_data_of_other_classes(tiny_config, tmp_path, change, count):
    train, val = dataset(tmp_path / 'a'), dataset(tmp_path / 'b', classes=THREE.replace(*change))
    builder = Builder(Config(tiny_config, opts=opts(train, val)))
    with pytest.raises(ValueError) as error:
        _ = builder.model
    names = 'road, lorry, sky' if count == 3 else 'road, car'
    assert str(error.value) == (
        f"{tiny_config}: key 'val_dataset.dataset_root': expected the classes of the training data in {train} (3 "
        f'classes road, car, sky), found {val} ({count} classes {names}); compare their dataset.yml')


def test_other_colours_are_no_other_classes(tiny_config, tmp_path):
    train, val = dataset(tmp_path / 'a'), dataset(tmp_path / 'b', classes=THREE.replace('9, 8, 7', '7, 8, 9'))
    assert Builder(Config(tiny_config, opts=opts(train, val))).model is not None


def test_another_ignore_index_reaches_losses_crops_and_metrics(tiny_config, tmp_path):
    """Crops larger than the image are padded, by PaddleSeg with 255, which is no value of this dataset."""
    root = dataset(tmp_path / 'a', ignore_index=254)
    builder = Builder(Config(tiny_config, opts=opts(root)))
    assert [loss.ignore_index for loss in builder.loss['types']] == [254] * 8
    label = builder.train_dataset[0]['label']
    assert label.shape == (96, 128) and set(np.unique(label)) == {0, 1, 2, 254}
    assert (label[64:] == 254).all() and (label[:, 80:] == 254).all()  # 32 x 48 pixels are enlarged by 1.4 at most
    logits = paddle.zeros([1, 3, *label.shape])
    value = float(builder.loss['types'][4](logits, paddle.to_tensor(label)[None]))
    assert value == pytest.approx(np.log(3), rel=plain.tolerance(label.size))
    result = evaluate(lambda sample: np.zeros(sample['label'].shape, np.uint8), builder.val_dataset)
    truth = cv2.imread(str(root / 'gtFine/val/x/a_gtFine_labelTrainIds.png'), cv2.IMREAD_UNCHANGED)
    assert result['matrix'].sum() == 28 * 48
    assert result['matrix'][:, 0].tolist() == [(truth == i).sum() for i in range(3)]


def test_a_loss_with_another_ignore_index_is_refused(tiny_config, tmp_path):
    config = Config(tiny_config, opts=[*opts(dataset(tmp_path / 'a', 254)), 'loss.types.1.ignore_index=255'])
    with pytest.raises(ValueError) as error:
        _ = Builder(config).loss
    assert str(error.value) == (f"{tiny_config}: key 'loss.types.1.ignore_index': expected 254, as the training data "
                                'have it, found 255; remove the key')


def test_a_run_folder_knows_its_classes_without_the_data(tiny_config, tmp_path):
    """The weights, config.yml and dataset.yml of a run, on a machine that has no data."""
    config = Config(tiny_config, opts=opts(dataset(tmp_path / 'data')))
    config.save_once(tmp_path / 'run', 0)
    Builder(config).save_description(tmp_path / 'run')
    shutil.rmtree(tmp_path / 'data')
    builder = Builder(Config(tmp_path / 'run/config.yml', with_pretrained=False))
    assert builder.labels.names == ('road', 'car', 'sky')
    assert builder.model.ocrnet.head.cls_head.weight.shape[0] == 3


def test_only_the_validation_data_are_there(tiny_config, tmp_path):
    builder = Builder(Config(tiny_config, opts=opts('/nowhere', dataset(tmp_path / 'data'))))
    assert builder.model.ocrnet.head.cls_head.weight.shape[0] == 3


def test_weights_of_a_run_with_other_classes(tiny_config, tmp_path):
    Builder(Config(tiny_config, opts=opts(dataset(tmp_path / 'a')))).save_description(tmp_path / 'run')
    lines = THREE.splitlines()
    swapped = '\n'.join([lines[0], lines[2], lines[1], lines[3], ''])
    builder = Builder(Config(tiny_config, opts=opts(dataset(tmp_path / 'b', classes=swapped))))
    with pytest.raises(ValueError) as error:
        builder.check_weights(tmp_path / 'run')
    assert str(error.value) == (
        f'{tmp_path}/run/dataset.yml: expected the 3 classes car, road, sky of {tiny_config}, found 3 classes road, '
        'car, sky; use the config.yml in that folder, or train anew')
    builder.check_weights(tmp_path / 'b')
    builder.check_weights(tmp_path)  # no dataset.yml: nothing is known


def test_datasets_of_paddleseg_have_generic_names(tiny_config, tmp_path):
    (tmp_path / 'list.txt').write_text('a.png b.png\n')
    section = (f'{{_inherited_: False, type: Dataset, dataset_root: {tmp_path}, num_classes: 40, '
               'transforms: [{type: Normalize}], mode: '
               f'%s, %s_path: {tmp_path}/list.txt}}')
    path = tmp_path / 'mine.yml'
    path.write_text(f'_base_: {tiny_config}\ntrain_dataset: {section % ("train", "train")}\n'
                    f'val_dataset: {section % ("val", "val")}\n')
    labels = Builder(Config(path)).labels
    assert labels.names == tuple(f'class {i}' for i in range(40)) and len(set(labels.palette)) == 40
    assert Builder(Config(path)).model.ocrnet.head.cls_head.weight.shape[0] == 40


def test_the_cause_of_a_failed_build_is_told(tiny_config):
    builder = Builder(Config(tiny_config, opts=['train_dataset.dataset_root=/nowhere']))
    with pytest.raises((ValueError, OSError), match='/nowhere'):
        _ = builder.train_dataset


def test_the_saved_config_is_the_resolved_one(tiny_config, tmp_path):
    config = Config(tiny_config, opts=['iters=5'])
    assert config.save_once(tmp_path / 'run', 0) == 'config.yml'
    assert yaml.safe_load((tmp_path / 'run' / 'config.yml').read_text()) == config.dic
    assert Config(tmp_path / 'run' / 'config.yml').dic == config.dic


def test_a_resumed_run_keeps_the_first_config_with_its_pretrained_weights(tiny_config, tmp_path):
    opts = ['model.pretrained=/first.pdparams']
    Config(tiny_config, opts=opts).save_once(tmp_path, 0)
    first = (tmp_path / 'config.yml').read_text()
    assert '/first.pdparams' in first
    assert Config(tiny_config, opts=opts, with_pretrained=False).save_once(tmp_path, 20) == 'config.yml'
    assert [path.name for path in tmp_path.glob('config*')] == ['config.yml']
    longer = Config(tiny_config, opts=opts, iters=9, with_pretrained=False)
    assert longer.save_once(tmp_path, 20) == 'config_from_20.yml'
    assert yaml.safe_load((tmp_path / 'config_from_20.yml').read_text())['iters'] == 9
    assert (tmp_path / 'config.yml').read_text() == first


def test_warm_up_through_paddleseg(tiny_config):
    opts = ['lr_scheduler.warmup_iters=2', 'lr_scheduler.warmup_start_lr=0.0']
    for given in (opts, opts[:1]):  # it starts from 0 if nothing else is said
        schedule = Builder(Config(tiny_config, opts=given)).lr_scheduler
        assert isinstance(schedule, paddle.optimizer.lr.LinearWarmup) and schedule() == 0
    for given in (['lr_scheduler.warmup_iters=0'], ['lr_scheduler.warmup_start_lr=0.1']):
        schedule = Builder(Config(tiny_config, opts=given)).lr_scheduler
        assert isinstance(schedule, paddle.optimizer.lr.PolynomialDecay) and schedule() == schedule.base_lr


def test_pretrained_is_not_looked_for_outside_training():
    assert 'pretrained' not in Config(RECIPE, with_pretrained=False).dic['model']
    assert Config(RECIPE).dic['model']['pretrained'] == 'pretrain/pretrained.pdparams'


def test_weight_decay_of_a_group_of_parameters(tiny_config, tmp_path):
    """Without a gradient a step is w -= lr * decay * w: none for batch norm, whose group has decay 0."""
    opts = ['optimizer.custom_cfg=[{"name": "_batch_norm", "weight_decay_mult": 0.0}]', 'optimizer.weight_decay=0.5',
            'lr_scheduler.learning_rate=0.1']
    builder = Builder(Config(tiny_config, opts=opts))
    model, optimizer = builder.model, builder.optimizer
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}

    def step(optimizer, model):
        for p in model.parameters():
            if not p.stop_gradient:
                p.grad = paddle.zeros_like(p)
        optimizer.step()

    step(optimizer, model)
    trained = [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]
    assert len([name for name, _ in trained if '_batch_norm' in name]) > 10
    for name, p in trained:
        factor = 1 if '_batch_norm' in name else 1 - 0.1 * 0.5
        # Three products and a difference here, the factor and a product there: eight half bits
        np.testing.assert_allclose(p.numpy(), factor * before[name], rtol=4 * rounding.EPS, err_msg=name)

    # And a resumed run goes on with it.
    checkpoint.save(tmp_path, 1, model, optimizer, {'iteration': 1}, keep_max=0)
    step(optimizer, model)
    resumed = Builder(Config(tiny_config, opts=opts))
    checkpoint.resume(tmp_path / 'iter_1', resumed.model, resumed.optimizer)
    step(resumed.optimizer, resumed.model)
    for (name, p), q in zip(model.named_parameters(), resumed.model.parameters()):
        np.testing.assert_array_equal(p.numpy(), q.numpy(), err_msg=name)
