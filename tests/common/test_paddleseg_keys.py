"""Keys that PaddleSeg's own configs have and that it ignores: told, and without effect; stated for nothing: refused."""
import logging

import pytest

from common.config import Config
from common.errors import UserError
from common.paddleseg_keys import WITHOUT_USE


def test_keys_that_paddleseg_ignores_are_told(tiny_config, caplog):
    groups = '[{"name": "backbone", "lr_multi": 10.0}, {"name": "bn", "weight_decay_mult": 0.0}]'
    with caplog.at_level(logging.WARNING):
        found = Config(tiny_config, ['learning_rate={"decay": {"end_lr": 1.0e-5}}', f'optimizer.custom_cfg={groups}',
                                     'test_config.auc_roc=True']).dic
    plain = Config(tiny_config, ['optimizer.custom_cfg=[{"name": "backbone"}, {"name": "bn", "weight_decay_mult": 0.0}]'
                                 ]).dic
    assert {**found, 'test_config': {}} == {**plain, 'test_config': {}} and not found['test_config']
    lines = [record.getMessage() for record in caplog.records]
    for key in ('learning_rate', 'optimizer.custom_cfg.0.lr_multi', 'test_config.auc_roc'):
        assert sum(f"key '{key}' has no effect" in line for line in lines) == 1


def test_an_old_learning_rate_alone_says_what_to_write(tmp_path, tiny_config):
    text = tiny_config.read_text() + 'learning_rate: {value: 0.02, decay: {type: poly, power: 0.9}}\n'
    tiny_config.write_text(text)
    assert Config(tiny_config).dic['lr_scheduler']['learning_rate'] == 0.003  # that of its base
    own = tmp_path / 'own.yml'
    own.write_text('batch_size: 2\nlearning_rate: {value: 0.02, decay: {type: poly, power: 0.9}}\n')
    with pytest.raises(UserError, match=r"own\.yml: key 'learning_rate': expected lr_scheduler.*learning_rate: 0\.02"):
        Config(own)


@pytest.mark.parametrize('value', ['0.01', '{"rate": 1}'])
def test_a_misplaced_learning_rate_is_refused(value, tiny_config):
    with pytest.raises(UserError, match="key 'learning_rate': expected a known name"):
        Config(tiny_config, [f'learning_rate={value}'])


@pytest.mark.parametrize('key', WITHOUT_USE)
def test_keys_without_use_are_refused_with_the_way_out(key, tiny_config):
    with pytest.raises(UserError, match=f"key '{key}': expected it to be absent, found True; {WITHOUT_USE[key]}"):
        Config(tiny_config, [f'{key}=True'])


def test_the_backbone_factor_of_earlier_versions_says_what_to_write(tiny_config):
    with pytest.raises(UserError, match=r"key 'optimizer\.backbone_lr_mult': expected what took its place.*write "
                                        r'custom_cfg: \[\{name: backbone, lr_mult: 0\.1\}\]'):
        Config(tiny_config, ['optimizer.backbone_lr_mult=0.1'])
