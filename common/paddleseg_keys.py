"""Keys that PaddleSeg 2.8's own configs have and that do nothing there, or have no use here."""
import logging
from typing import Any

from common.errors import UserError

logger = logging.getLogger(__name__)

# Keys of PaddleSeg at the top of a config -> what to do instead.
WITHOUT_USE = {'to_static_training': 'training builds no static graph here: remove it',
               'export': 'export.py has flags for that: remove it',
               'distill_loss': 'no teacher trains a student here, nor does it in train.py of PaddleSeg: remove it to '
                               'train as that does'}
# Keys of earlier versions in sections -> what takes their place.
REPLACED = {('optimizer', 'backbone_lr_mult'): 'custom_cfg: [{{name: backbone, lr_mult: {}}}]'}


def drop_without_effect(dic: dict[str, Any], path: str) -> None:
    """Remove from a resolved config the keys that PaddleSeg 2.8 ignores in silence, with a warning for each.

    So its published configs compute what they computed there. UserError where such a key stands for one that is
    missing.
    """
    def warn(key: str, reason: str) -> None:
        logger.warning("%s: key '%s' has no effect%s", path, key, reason)

    old = dic.get('learning_rate')
    if isinstance(old, dict) and old.keys() <= {'value', 'decay'}:  # anything else is refused as unknown
        if 'lr_scheduler' not in dic:
            raise UserError(f"{path}: key 'learning_rate': expected lr_scheduler, which took its place in PaddleSeg "
                            f'2.1, found {old!r:.100}; write lr_scheduler: {{type: PolynomialDecay, learning_rate: '
                            f'{old.get("value", 0.01)}, end_lr: 0, power: 0.9}} with your values')
        del dic['learning_rate']
        warn('learning_rate', ', as in PaddleSeg since 2.1: lr_scheduler counts')
    for (section, name), text in REPLACED.items():
        if isinstance(dic.get(section), dict) and name in dic[section]:
            raise UserError(f"{path}: key '{section}.{name}': expected what took its place in PaddleSeg 2.6, found "
                            f'{dic[section][name]!r:.60}; write {text.format(dic[section][name])}')
    optimizer = dic.get('optimizer')
    groups = optimizer.get('custom_cfg') if isinstance(optimizer, dict) else None
    for i, group in enumerate(groups if isinstance(groups, list) else ()):
        if isinstance(group, dict) and group.pop('lr_multi', None) is not None:
            warn(f'optimizer.custom_cfg.{i}.lr_multi', ', as in PaddleSeg: the name of the factor is lr_mult')
    test = dic.get('test_config')
    if isinstance(test, dict) and test.pop('auc_roc', None):
        warn('test_config.auc_roc', ': no area under the curve is computed here; val.py --calibration tells how far '
                                    'confidence can be believed')
