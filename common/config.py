"""A YAML file in PaddleSeg's schema, checked before anything is built, and the objects it describes."""
import copy
import difflib
import inspect
import os
from ast import literal_eval
from functools import cached_property
from pathlib import Path

import paddle
import paddleseg.cvlibs
import yaml
from paddleseg.cvlibs import manager
from paddleseg.utils import logger as paddleseg_logger

from common import registry
from common.atomic_io import write_atomically
from common.errors import UserError
from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.description import describe
from datasets.labels import LabelSet, distinct_colors

NUMBER = (int, float)
TOP_LEVEL = {'batch_size': int, 'iters': int, 'model': dict, 'train_dataset': dict, 'val_dataset': dict,
             'optimizer': dict, 'lr_scheduler': dict, 'loss': dict, 'test_config': dict,
             'options': dict}
OPTIONS = {'ema': float, 'freeze_batch_norm': bool, 'early_stop': int}
TEST_CONFIG = {'aug_eval': bool, 'scales': (int, float, list), 'flip_horizontal': bool, 'flip_vertical': bool,
               'is_slide': bool, 'crop_size': list, 'stride': list}
COMPONENTS = {'model': (manager.MODELS, manager.BACKBONES), 'backbone': (manager.BACKBONES,),
              'train_dataset': (manager.DATASETS,), 'val_dataset': (manager.DATASETS,),
              'transforms': (manager.TRANSFORMS,), 'optimizer': (manager.OPTIMIZERS,), 'types': (manager.LOSSES,),
              'losses': (manager.LOSSES,)}


# ---------------------------------------------------------------- reading

def read_yaml(path):
    """The mapping in one YAML file, without its bases."""
    path = Path(path)
    if path.suffix not in ('.yml', '.yaml') or not path.is_file():
        raise UserError(f'{path}: expected a config file (.yml), found '
                         f'{"another kind of file" if path.exists() else "nothing"}; configs/ has those we ship')
    try:
        dic = yaml.safe_load(path.read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        where = f' line {mark.line + 1}' if mark else ''
        raise UserError(f'{path}:{where} is not valid YAML: {getattr(error, "problem", error)}; '
                         'check the indentation and the colons there') from error
    if not isinstance(dic, dict):
        raise UserError(f'{path}: expected a mapping of keys, found {type(dic).__name__}; see configs/ for examples')
    return dic


def _chain(path):
    """[(file, its own mapping)], the most derived file first."""
    dic = read_yaml(path)
    bases = dic.pop('_base_', [])
    chain = [(path, dic)]
    for base in [bases] if isinstance(bases, str) else bases:
        chain += _chain(os.path.join(os.path.dirname(path), base))
    return chain


def _override(dic, item):
    """Apply one `a.b.0.c=value`; the value is a Python or YAML literal, else a string."""
    key, equals, text = item.partition('=')
    if not equals:
        raise UserError(f'--opts {item}: expected key=value, found no "="; for example '
                         '--opts model.n_scales=[0.5,1.0]')
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError):
        value = yaml.safe_load(text)
    *parents, last = [int(part) if part.lstrip('-').isdigit() else part for part in key.split('.')]
    for part in parents:
        if isinstance(dic, dict) and isinstance(part, str):
            dic.setdefault(part, {})  # the check of the whole config knows which keys there are
        try:
            dic = dic[part]
        except (KeyError, IndexError, TypeError):
            keys = list(dic) if isinstance(dic, dict) else range(len(dic)) if isinstance(dic, list) else []
            raise UserError(f'--opts {item}: the config has no {part!r} there; {_nearest(part, keys)}') from None
    if (isinstance(dic, list) and not (isinstance(last, int) and last < len(dic))) or not isinstance(dic, (list, dict)):
        raise UserError(f'--opts {item}: {key!r} cannot be set there; the parent is {dic!r:.60}')
    dic[last] = value


# ---------------------------------------------------------------- checking

def _nearest(name, valid):
    valid = [str(v) for v in valid]
    near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.6)
    return f'did you mean {" or ".join(near)}?' if near else f'valid names: {", ".join(sorted(valid)[:25])}'


def _kinds(expected):
    kinds = expected if isinstance(expected, tuple) else (expected,)
    return NUMBER if float in kinds else kinds


class _Checker:
    """Walks a resolved config and refuses what does not fit, naming the key and the file that says so."""

    def __init__(self, chain, opts):
        self.chain = chain
        self.opts = opts

    def fail(self, keys, text):
        key = '.'.join(map(str, keys))
        raise UserError(f'{self._source(keys)}: key {key!r}: {text}')

    def _source(self, keys):
        names = [str(key) for key in keys]
        options = [(item, item.partition('=')[0].split('.')) for item in reversed(self.opts)]
        for item, parts in options:
            if parts == names:
                return f'--opts {item}'
        for path, dic in self.chain:
            try:
                for key in keys:
                    dic = dic[key]
            except (KeyError, IndexError, TypeError):
                continue
            return path
        # No file has the key: an option has set something in it, or it is missing from the file itself.
        return next((f'--opts {item}' for item, parts in options if parts[:len(names)] == names), self.chain[0][0])

    def value(self, keys, value, expected):
        kinds = _kinds(expected)
        wrong_bool = isinstance(value, bool) and bool not in kinds
        if not isinstance(value, kinds) or wrong_bool:
            names = {int: 'an integer', float: 'a number', bool: 'True or False', str: 'text', list: 'a list',
                     dict: 'a mapping', tuple: 'a list'}
            wanted = 'a number' if kinds == NUMBER else ' or '.join(dict.fromkeys(names[kind] for kind in kinds))
            hint = ' (YAML reads 1e-3 as text: write 0.001 or 1.0e-3)' if isinstance(value, str) and kinds == NUMBER \
                else ''
            self.fail(keys, f'expected {wanted}, found {value!r}; correct the value{hint}')

    def names(self, keys, dic, valid, required=()):
        for name in dic:
            if name not in valid:
                self.fail((*keys, name), f'expected a known name, found {name!r}; {_nearest(name, valid)}')
        for name in required:
            if name not in dic:
                self.fail((*keys, name), f'expected a value, found none; add {name} to '
                                         f'{".".join(map(str, keys)) or "the config"}')

    def component(self, keys, cfg, registries, aliases=None, extra=()):
        """A mapping with `type`: the type must be registered, the other keys its parameters, of the right types."""
        if not isinstance(cfg, dict):
            self.fail(keys, f'expected a mapping with "type", found {cfg!r}; write it as "type: NAME" and parameters')
        if 'type' not in cfg:
            self.fail((*keys, 'type'), 'expected the name of a class, found none; add "type: NAME"')
        known = {name: component for registry_ in registries for name, component in registry_.items()}
        name = (aliases or {}).get(cfg['type'], cfg['type'])
        if name not in known:
            self.fail((*keys, 'type'), f'expected a registered type, found {cfg["type"]!r}; '
                                       f'{_nearest(cfg["type"], known)}')
        parameters = [p for p in inspect.signature(known[name]).parameters.values() if p.name not in extra]
        given = {key: value for key, value in cfg.items() if key != 'type'}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL
                        and p.name not in ('num_classes', 'in_channels')]
            self.names(keys, given, [p.name for p in parameters], required)
        for parameter in parameters:
            if parameter.name in given:
                self._parameter((*keys, parameter.name), given[parameter.name], parameter)

    def _parameter(self, keys, value, parameter):
        default = parameter.default
        if keys[-1] in COMPONENTS and isinstance(value, (dict, list)):
            self.components(keys, value)
        elif default is None or (value is None and default is not parameter.empty):
            return  # PaddleSeg's None stands for several kinds
        elif default is parameter.empty:
            expected = {'num_classes': int, 'backbone_indices': list, 'dataset_root': str, 'min_K': int,
                        'loss_th': float, 'coef': list}.get(parameter.name)
            if keys[-1] in COMPONENTS:
                self.fail(keys, f'expected a mapping with "type", found {value!r}; correct the value')
            if expected:
                self.value(keys, value, expected)
        else:
            kind = type(default)
            self.value(keys, value, bool if kind is bool else float if kind in NUMBER else
                       list if kind is tuple else kind)

    def components(self, keys, value):
        registries = [manager_.components_dict for manager_ in COMPONENTS[keys[-1]]]
        if isinstance(value, list):
            for i, item in enumerate(value):
                self.component((*keys, i), item, registries)
        else:
            self.component(keys, value, registries)

    def check(self, dic):
        optional = ('val_dataset', 'test_config', 'options')
        self.names((), dic, TOP_LEVEL, [key for key in TOP_LEVEL if key not in optional])
        for key, value in dic.items():
            self.value((key,), value, TOP_LEVEL[key])
        for key in ('batch_size', 'iters'):
            if dic[key] < 1:
                self.fail((key,), f'expected at least 1, found {dic[key]}; correct the value')
        for key in ('model', 'train_dataset', 'val_dataset'):
            if key in dic:
                self.components((key,), dic[key])
        momentum = 'momentum' in dic['optimizer']
        self.component(('optimizer',), dic['optimizer'], [manager.OPTIMIZERS.components_dict],
                       aliases={'sgd': 'Momentum' if momentum else 'SGD', 'SGD': 'Momentum' if momentum else 'SGD',
                                'adam': 'Adam'})
        self._lr_scheduler(dic['lr_scheduler'])
        self._loss(dic['loss'])
        for section, valid in (('test_config', TEST_CONFIG), ('options', OPTIONS)):
            self.names((section,), dic.get(section, {}), valid)
            for key, value in dic.get(section, {}).items():
                self.value((section, key), value, valid[key])

    def _lr_scheduler(self, cfg):
        schedulers = {name: cls for name, cls in vars(paddle.optimizer.lr).items()
                      if inspect.isclass(cls) and issubclass(cls, paddle.optimizer.lr.LRScheduler)}
        warmup = {key: cfg[key] for key in ('warmup_iters', 'warmup_start_lr') if key in cfg}
        for key, value in warmup.items():
            self.value(('lr_scheduler', key), value, float)
        rest = {key: value for key, value in cfg.items() if key not in warmup}
        if rest.get('type') == 'PolynomialDecay':
            rest.setdefault('decay_steps', 1)  # PaddleSeg's builder fills it in
        self.component(('lr_scheduler',), rest, [schedulers])
        self.value(('lr_scheduler', 'learning_rate'), rest.get('learning_rate', 0), float)

    def _loss(self, cfg):
        self.names(('loss',), cfg, ('types', 'coef'), ('types', 'coef'))
        for key in ('types', 'coef'):
            self.value(('loss', key), cfg[key], list)
        self.components(('loss', 'types'), cfg['types'])
        for i, coef in enumerate(cfg['coef']):
            self.value(('loss', 'coef', i), coef, float)
        if len(cfg['types']) not in (1, len(cfg['coef'])):
            self.fail(('loss', 'types'), f'expected 1 or as many losses as loss.coef has ({len(cfg["coef"])}), found '
                                         f'{len(cfg["types"])}; give every loss its coefficient')


# ---------------------------------------------------------------- the result

class Config(paddleseg.cvlibs.Config):
    """A checked config; `dic` is the resolved mapping, as PaddleSeg's own Config has it.

    path: YAML file. opts: `a.b=value` overrides. iters, batch_size, learning_rate: PaddleSeg's shortcuts for three of
    them. with_pretrained: False where weights are loaded from elsewhere, so that nobody looks for that file.
    Raises ValueError with one line that names the key, the file, and the nearest valid names.
    """

    def __init__(self, path, opts=(), iters=None, batch_size=None, learning_rate=None, with_pretrained=True):
        registry.register()
        chain = _chain(str(path))
        dic = {}
        for _, own in reversed(chain):
            dic = paddleseg.cvlibs.config.merge_config_dicts(own, dic)
        dic = copy.deepcopy(dic)
        opts = list(opts or ())
        opts += [f'{key}={value}' for key, value in (('iters', iters), ('batch_size', batch_size),
                                                     ('lr_scheduler.learning_rate', learning_rate))
                 if value is not None]
        for item in opts:
            _override(dic, item)
        _Checker(chain, opts).check(dic)
        if not with_pretrained:
            dic['model'].pop('pretrained', None)
        self.dic = dic
        self.path = str(path)
        self._apply_paddleseg_rules()

    def _apply_paddleseg_rules(self):
        try:
            self._build_default_checker().apply_all_rules(self)
        except RuntimeError as error:
            raise UserError(f'{self.path}: {str(error).splitlines()[-1]}') from error

    def save_once(self, folder, iteration):
        """Write the resolved config as config.yml, so that a run can be repeated from its folder alone.

        The first one stays; one that says something else is kept beside it as config_from_<iteration>.yml. Returns the
        name of the file that holds this config.
        """
        first, name = Path(folder) / 'config.yml', 'config.yml'
        if first.is_file():
            known = yaml.safe_load(first.read_text(encoding='utf-8'))
            known['model'].pop('pretrained', None)  # a resumed run does not look for that file
            if known == yaml.safe_load(str(self)):
                return name
            name = f'config_from_{iteration}.yml'
        write_atomically(Path(folder) / name, str(self).encode())
        return name


class Builder(paddleseg.cvlibs.SegBuilder):
    """PaddleSeg's builder of model, datasets, losses, optimizer and schedule, with the cause of a failure unwrapped."""

    def __init__(self, config):
        super().__init__(config)
        paddleseg_logger.log_level = 0  # it prints every component it builds

    def build_component(self, cfg):
        try:
            return super().build_component(cfg)
        except RuntimeError as error:
            cause = error
            while cause.__context__ is not None:
                cause = cause.__context__
            if isinstance(cause, UserError):
                raise cause from None
            if isinstance(cause, (ValueError, OSError)):  # PaddleSeg's own words about a value
                raise UserError(f'{self.config.path}: {cfg.get("type")}: {" ".join(str(cause).split())}') from error
            raise

    def _described(self, dataset_class, section):
        """The dataset's class with the classes of its folder, where it is one of ours: PaddleSeg asks the class.

        Where that folder is not there (weights used on another machine) a run's dataset.yml lies beside its config;
        failing that, the other section's folder may be there.
        """
        sections = [section, *{'train_dataset', 'val_dataset'} - {section}]
        root, other = (self.config.dic.get(name, {}).get('dataset_root') for name in sections)
        if not issubclass(dataset_class, CityscapesAutolabeling) or root is None:
            return dataset_class
        beside = os.path.dirname(self.config.path)
        if not os.path.isdir(root):
            root = beside if os.path.isfile(os.path.join(beside, 'dataset.yml')) else other or root
        labels = describe(root).labels
        return type(dataset_class.__name__, (dataset_class,), {
            'LABELS': labels, 'NUM_CLASSES': labels.num_classes, 'IGNORE_INDEX': labels.ignore_index})

    @cached_property
    def train_dataset_class(self):
        return self._described(super().train_dataset_class, 'train_dataset')

    @cached_property
    def val_dataset_class(self):
        return self._described(super().val_dataset_class, 'val_dataset')

    @cached_property
    def model(self):
        self._check_classes()
        return super().model

    def release_model(self):
        """Forget the model, whose memory is free as soon as nobody else holds it."""
        vars(self).pop('model', None)

    @property
    def labels(self):
        """The LabelSet of the validation dataset; generic names and no colours for PaddleSeg's own datasets."""
        dataset_class = self.val_dataset_class if 'val_dataset' in self.config.dic else self.train_dataset_class
        if hasattr(dataset_class, 'LABELS'):
            return dataset_class.LABELS
        cfg = self.config.val_dataset_cfg or self.config.train_dataset_cfg
        num_classes = cfg.get('num_classes') or dataset_class.NUM_CLASSES
        return LabelSet(names=tuple(f'class {i}' for i in range(num_classes)),
                                 palette=tuple(distinct_colors(num_classes)))

    def save_description(self, folder):
        """Copy the training data's dataset.yml, if there is one, beside the run's config, for other machines."""
        root = self.config.dic['train_dataset'].get('dataset_root')
        if root is not None and (path := Path(root) / 'dataset.yml').is_file():
            write_atomically(Path(folder) / 'dataset.yml', path.read_bytes())

    def check_weights(self, folder):
        """ValueError if weights come from a run, whose folder has a dataset.yml, of other classes than the config's.

        Their number alone would not tell: the same classes in another order give nonsense without an error.
        """
        path = Path(folder) / 'dataset.yml'
        if path.is_file() and (found := describe(folder).labels.names) != self.labels.names:
            raise UserError(f'{path}: expected the {_listed(self.labels.names)} of {self.config.path}, found '
                             f'{_listed(found)}; use the config.yml in that folder, or train anew')

    def _check_classes(self):
        """model.num_classes, training and validation data must agree, by names where the datasets have them."""
        def names(dataset_class):
            return dataset_class.LABELS.names if hasattr(dataset_class, 'LABELS') else None

        config, train = self.config, self.train_dataset_class
        if names(train) is None:
            return
        root = config.dic['train_dataset']['dataset_root']
        stated = config.dic['model'].get('num_classes', train.NUM_CLASSES)
        if stated != train.NUM_CLASSES:
            raise UserError(f"{config.path}: key 'model.num_classes': expected {train.NUM_CLASSES}, the classes of "
                             f'train_dataset.dataset_root {root}, found {stated}; remove the key or correct the folder')
        if 'val_dataset' in config.dic and names(self.val_dataset_class) not in (None, names(train)):
            val_root = config.dic['val_dataset']['dataset_root']
            raise UserError(f"{config.path}: key 'val_dataset.dataset_root': expected the classes of the training "
                             f'data in {root} ({_listed(names(train))}), found {val_root} '
                             f'({_listed(names(self.val_dataset_class))}); compare their dataset.yml')

    @cached_property
    def loss(self):
        expected = getattr(self.train_dataset_class, 'IGNORE_INDEX', None)
        for i, cfg in enumerate(self.config.loss_cfg['types']):
            for part in cfg.get('losses', [cfg]):  # of a MixedLoss
                found = part.get('ignore_index', expected)
                if None not in (found, expected) and found != expected:
                    raise UserError(f"{self.config.path}: key 'loss.types.{i}.ignore_index': expected {expected}, as "
                                     f'the training data have it, found {found}; remove the key')
        return super().loss


def _listed(names):
    return f'{len(names)} classes {", ".join(names[:4])}{", ..." if len(names) > 4 else ""}'
