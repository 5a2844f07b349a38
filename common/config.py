"""A YAML file in PaddleSeg's schema, checked before anything is built."""
import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import paddleseg.cvlibs
import yaml

from common import registry
from common.atomic_io import write_atomically
from common.config_files import check_mergeable, override, read_chain
from common.errors import UserError
from common.paddleseg_keys import drop_without_effect
from common.schema import Checker


class Config(paddleseg.cvlibs.Config):
    """A checked config; `dic` is the resolved mapping, as in PaddleSeg's own Config.

    path: YAML file. opts: `a.b=value` overrides. iters, batch_size, learning_rate: PaddleSeg's shortcuts for three of
    them. with_pretrained: False if weights are loaded from elsewhere, so that the file of pretrained weights is
    not required.
    Raises UserError with one line that names the key, the file, and the nearest valid names.
    """

    def __init__(self, path: str | os.PathLike, opts: Sequence[str] = (), iters: int | None = None,
                 batch_size: int | None = None, learning_rate: float | None = None,
                 with_pretrained: bool = True) -> None:
        registry.register()
        chain = read_chain(str(path))
        dic: dict[str, Any] = {}
        for file, own in reversed(chain):
            check_mergeable(own, dic, file)
            dic = paddleseg.cvlibs.config.merge_config_dicts(own, dic)
        dic = copy.deepcopy(dic)
        opts = list(opts or ())
        opts += [f'{key}={value}' for key, value in (('iters', iters), ('batch_size', batch_size),
                                                     ('lr_scheduler.learning_rate', learning_rate))
                 if value is not None]
        for item in opts:
            override(dic, item)
        drop_without_effect(dic, str(path))
        Checker(chain, opts).check(dic)
        self._complete_warmup(dic['lr_scheduler'])
        self._complete_dice(dic)
        if not with_pretrained:
            for _, part in pretrained_parts(dic['model']):
                del part['pretrained']
        self.dic = dic
        self.path = str(path)
        self._apply_paddleseg_rules()

    @staticmethod
    def _complete_warmup(cfg: dict[str, Any]) -> None:
        """PaddleSeg's builder fails at a warm-up of 0 iterations, and at one that does not say where it starts."""
        if cfg.get('warmup_iters'):
            cfg.setdefault('warmup_start_lr', 0.0)
        else:
            for key in ('warmup_iters', 'warmup_start_lr'):
                cfg.pop(key, None)

    @staticmethod
    def _complete_dice(dic: dict[str, Any]) -> None:
        """DiceLoss is the recipe's with the recipe's network, and PaddleSeg's, which `smooth` says, with any other."""
        if not registry.is_the_recipes(dic['model']):
            for loss in dic['loss']['types']:
                for part in loss.get('losses', [loss]):  # of a MixedLoss
                    if part['type'] == 'DiceLoss' and 'weight' not in part:
                        part.setdefault('smooth', 1.0)

    def _apply_paddleseg_rules(self) -> None:
        try:
            self._build_default_checker().apply_all_rules(self)
        except RuntimeError as error:
            raise UserError(f'{self.path}: {str(error).splitlines()[-1]}') from error

    def save_once(self, folder: str | os.PathLike, iteration: int) -> str:
        """Write the resolved config as config.yml, so that a run can be repeated from its folder alone.

        An existing config.yml is kept; a config that differs from it is written beside it as
        config_from_<iteration>.yml. Returns the name of the file that holds this config.
        """
        first, name = Path(folder) / 'config.yml', 'config.yml'
        if first.is_file():
            known = yaml.safe_load(first.read_text(encoding='utf-8'))
            for _, part in pretrained_parts(known['model']):  # a resumed run does not read these files
                del part['pretrained']
            if known == yaml.safe_load(str(self)):
                return name
            name = f'config_from_{iteration}.yml'
        write_atomically(Path(folder) / name, str(self).encode())
        return name


def pretrained_parts(cfg: dict[str, Any], key: str = 'model') -> Iterator[tuple[str, dict[str, Any]]]:
    """(its key `pretrained`, mapping) of the model and every part of it that states weights to start from."""
    if isinstance(cfg.get('pretrained'), str):
        yield f'{key}.pretrained', cfg
    for name, part in cfg.items():
        if isinstance(part, dict):
            yield from pretrained_parts(part, f'{key}.{name}')
