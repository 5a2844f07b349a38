"""The schema of a config: its keys, their types, the classes it names and their parameters."""
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import paddle
from paddleseg.cvlibs import manager

from common.config_files import nearest
from common.errors import UserError
from common.paddleseg_keys import WITHOUT_USE
from common.parameters import parameters as parameters_of
from common.ranges import RULES

Keys = tuple[str | int, ...]  # the path of a value in a config
NUMBER: tuple[type, ...] = (int, float)
TOP_LEVEL: dict[str, type] = {
    'batch_size': int, 'iters': int, 'model': dict, 'train_dataset': dict, 'val_dataset': dict, 'optimizer': dict,
    'lr_scheduler': dict, 'loss': dict, 'test_config': dict, 'options': dict}
OPTIONS: dict[str, type] = {'ema': float, 'freeze_batch_norm': bool, 'early_stop': int, 'loader_timeout': float}
TEST_CONFIG: dict[str, type | tuple[type, ...]] = {
    'aug_eval': bool, 'scales': (int, float, list), 'flip_horizontal': bool, 'flip_vertical': bool,
    'is_slide': bool, 'crop_size': list, 'stride': list}
ALWAYS_WITH_EDGES = ('EG1800', 'SUPERVISELY')  # datasets of PaddleSeg that compute edges whatever `edge` says
COMPONENTS = {'model': (manager.MODELS, manager.BACKBONES), 'backbone': (manager.BACKBONES,),
              'train_dataset': (manager.DATASETS,), 'val_dataset': (manager.DATASETS,),
              'transforms': (manager.TRANSFORMS,), 'optimizer': (manager.OPTIMIZERS,), 'types': (manager.LOSSES,),
              'losses': (manager.LOSSES,)}


def _kinds(expected: type | tuple[type, ...]) -> tuple[type, ...]:
    kinds = expected if isinstance(expected, tuple) else (expected,)
    return NUMBER if float in kinds else kinds


class Checker:
    """Checks a resolved config; errors name the key, and the file or option that sets it.

    chain: as common.config_files.read_chain. opts: the `a.b=value` overrides.
    """

    def __init__(self, chain: Sequence[tuple[str, dict[str, Any]]], opts: Sequence[str]) -> None:
        self.chain = chain
        self.opts = opts
        self.num_classes = None  # where the config states it

    def fail(self, keys: Keys, text: str) -> NoReturn:
        key = '.'.join(map(str, keys))
        raise UserError(f'{self._source(keys)}: key {key!r}: {text}')

    def _source(self, keys: Keys) -> str:
        names = [str(key) for key in keys]
        options = [(item, item.partition('=')[0].split('.')) for item in reversed(self.opts)]
        for item, parts in options:
            if parts == names:
                return f'--opts {item}'
        for path, own in self.chain:
            found: Any = own
            in_list = False
            try:
                for key in keys:
                    in_list = in_list or isinstance(found, list)
                    found = found[key]
            except (KeyError, IndexError, TypeError):
                if not in_list:  # mappings are merged with those of the bases, lists replace them
                    continue
            return path
        # No file has the key: an option has set something in it, or it is missing from the file itself.
        return next((f'--opts {item}' for item, parts in options if parts[:len(names)] == names), self.chain[0][0])

    def value(self, keys: Keys, value: Any, expected: type | tuple[type, ...]) -> None:
        kinds = _kinds(expected)
        wrong_bool = isinstance(value, bool) and bool not in kinds
        if not isinstance(value, kinds) or wrong_bool:
            names: dict[type, str] = {
                int: 'an integer', float: 'a number', bool: 'True or False', str: 'text', list: 'a list',
                dict: 'a mapping', tuple: 'a list'}
            wanted = 'a number' if kinds == NUMBER else ' or '.join(dict.fromkeys(names[kind] for kind in kinds))
            hint = ' (YAML reads 1e-3 as text: write 0.001 or 1.0e-3)' if isinstance(value, str) and kinds == NUMBER \
                else ''
            self.fail(keys, f'expected {wanted}, found {value!r}; correct the value{hint}')

    def names(self, keys: Keys, dic: Mapping[str, Any], valid: Collection[str], required: Collection[str] = ()) -> None:
        for name in dic:
            if name not in valid:
                self.fail((*keys, name), f'expected a known name, found {name!r}; {nearest(name, valid)}')
        for name in required:
            if name not in dic:
                self.fail((*keys, name), f'expected a value, found none; add {name} to '
                                         f'{".".join(map(str, keys)) or "the config"}')

    def component(self, keys: Keys, cfg: Any, registries: Sequence[Mapping[str, Any]],
                  aliases: Mapping[str, str] | None = None, extra: Collection[str] = ()) -> None:
        """A mapping with `type`: the type must be registered, the other keys its parameters, of the right types."""
        if not isinstance(cfg, dict):
            self.fail(keys, f'expected a mapping with "type", found {cfg!r}; write it as "type: NAME" and parameters')
        if 'type' not in cfg:
            self.fail((*keys, 'type'), 'expected the name of a class, found none; add "type: NAME"')
        known = {name: component for registry_ in registries for name, component in registry_.items()}
        name = (aliases or {}).get(cfg['type'], cfg['type'])
        if name not in known:
            self.fail((*keys, 'type'), f'expected a registered type, found {cfg["type"]!r}; '
                                       f'{nearest(cfg["type"], known)}')
        component = known[name].of_config(cfg) if hasattr(known[name], 'of_config') else known[name]
        refusal = getattr(component, 'refusal', None)
        if refusal is not None and (reason := refusal(cfg, self.num_classes)):
            self.fail((*keys, 'type'), f'expected a type that runs here, found {name}: {reason}; see docs/paddleseg.md')
        found, others = parameters_of(component)
        parameters = [p for p in found.values() if p.name not in extra]
        given = {key: value for key, value in cfg.items() if key != 'type'}
        if not others:
            required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL
                        and p.name not in ('num_classes', 'in_channels')]
            valid = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
            if name in manager.LOSSES.components_dict:
                valid.append('ignore_index')  # PaddleSeg's builder gives it to every loss
            if keys == ('train_dataset',):
                valid.append('class_uniform')  # of every dataset: datasets.paddleseg_dataset
            self.names(keys, given, valid, required)
        for parameter in parameters:
            if parameter.name in given:
                self._parameter((*keys, parameter.name), given[parameter.name], parameter)

    def _parameter(self, keys: Keys, value: Any, parameter: inspect.Parameter) -> None:
        default = parameter.default
        if keys[-1] in COMPONENTS and isinstance(value, (dict, list)):
            self.components(keys, value)
        elif default is None or (value is None and default is not parameter.empty):
            return  # a default of None does not tell the type
        elif default is parameter.empty:
            types: dict[str, type] = {
                'num_classes': int, 'backbone_indices': list, 'dataset_root': str, 'min_K': int,
                'loss_th': float, 'coef': list}
            expected = types.get(parameter.name)
            if keys[-1] in COMPONENTS:
                self.fail(keys, f'expected a mapping with "type", found {value!r}; correct the value')
            if expected:
                self.value(keys, value, expected)
        else:
            kind = type(default)
            self.value(keys, value, bool if kind is bool else float if kind in NUMBER else
                       list if kind is tuple else kind)

    def components(self, keys: Keys, value: Any) -> None:
        registries = [manager_.components_dict for manager_ in COMPONENTS[str(keys[-1])]]
        if isinstance(value, list):
            for i, item in enumerate(value):
                self.component((*keys, i), item, registries)
        else:
            self.component(keys, value, registries)

    def check(self, dic: dict[str, Any]) -> None:
        optional = ('val_dataset', 'test_config', 'options')
        for key in WITHOUT_USE.keys() & dic.keys():
            self.fail((key,), f'expected it to be absent, found {dic[key]!r:.60}; {WITHOUT_USE[key]}')
        self.names((), dic, TOP_LEVEL, [key for key in TOP_LEVEL if key not in optional])
        for key, value in dic.items():
            self.value((key,), value, TOP_LEVEL[key])
        self.num_classes = dic['model'].get('num_classes', dic['train_dataset'].get('num_classes'))
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

        self._ranges((), dic)
        self._together(dic)

    def _ranges(self, keys: Keys, value: Any) -> None:
        """Every value, by the name of its key (common.ranges)."""
        rule = RULES.get(str(keys[-1])) if keys else None
        if rule and (problem := rule(value)):
            at = next((i for i, item in enumerate(value) if rule([item])), None) if keys == ('loss', 'coef') else None
            keys = keys if at is None else (*keys, at)
            self.fail(keys, f'expected {problem}, found {value!r:.60}; correct the value')
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            self._ranges((*keys, key), item)

    def _together(self, dic: Mapping[str, Any]) -> None:
        """Values that depend on each other."""
        for section, wrong in (('train_dataset', ('val', 'test')), ('val_dataset', ('train', 'trainval', 'test'))):
            dataset = dic.get(section)
            if dataset is None:
                continue
            if dataset.get('mode') in wrong:
                self.fail((section, 'mode'), f'expected {section.partition("_")[0]}, found {dataset["mode"]!r}; '
                                             'correct or remove it')
            if 'transforms' in dataset and (not isinstance(dataset['transforms'], list) or not dataset['transforms']):
                self.fail((section, 'transforms'), 'expected a list of transforms, found '
                                                   f'{dataset["transforms"]!r:.60}; Normalize at least')
            for i, transform in enumerate(dataset.get('transforms', ())):
                for name in ('mean', 'std'):
                    channels = dataset.get('img_channels', 3)
                    if name in transform and len(transform[name]) != channels:
                        self.fail((section, 'transforms', i, name), f'expected {channels} numbers, one for each '
                                                                    f'channel, found {transform[name]!r}; correct it')
        train = dic['train_dataset']
        for i, loss in enumerate(dic['loss']['types']):
            if not dic['loss']['types'] or not isinstance(loss, dict):
                self.fail(('loss', 'types', i), f'expected a loss, found {loss!r}; correct it')
            on_edges = any(part.get('edge_label') for part in loss.get('losses', [loss]))
            if on_edges and not train.get('edge') and train['type'] not in ALWAYS_WITH_EDGES:
                self.fail(('train_dataset', 'edge'), f'expected True, as loss.types.{i} has edge_label: True, found '
                                                     f'{train.get("edge")}; add edge: True (of PaddleSeg\'s datasets)')
        test = dic.get('test_config', {})
        if test.get('is_slide'):
            for name in ('crop_size', 'stride'):
                if name not in test:
                    self.fail(('test_config', name), 'expected width and height for is_slide, found none; add them')
            if any(step > side for step, side in zip(test['stride'], test['crop_size'])):
                self.fail(('test_config', 'stride'), f'expected at most the crop size {test["crop_size"]}, found '
                                                     f'{test["stride"]}; lower it')

    def _lr_scheduler(self, cfg: dict[str, Any]) -> None:
        schedulers = {name: cls for name, cls in vars(paddle.optimizer.lr).items()
                      if inspect.isclass(cls) and issubclass(cls, paddle.optimizer.lr.LRScheduler)}
        warmup = {key: cfg[key] for key in ('warmup_iters', 'warmup_start_lr') if key in cfg}
        for key, value in warmup.items():
            self.value(('lr_scheduler', key), value, int if key == 'warmup_iters' else float)
        rest = {key: value for key, value in cfg.items() if key not in warmup}
        if rest.get('type') == 'PolynomialDecay':
            rest.setdefault('decay_steps', 1)  # PaddleSeg's builder fills it in
        self.component(('lr_scheduler',), rest, [schedulers])
        self.value(('lr_scheduler', 'learning_rate'), rest.get('learning_rate', 0), float)

    def _loss(self, cfg: dict[str, Any]) -> None:
        self.names(('loss',), cfg, ('types', 'coef'), ('types', 'coef'))
        for key in ('types', 'coef'):
            self.value(('loss', key), cfg[key], list)
        if not cfg['types']:
            self.fail(('loss', 'types'), 'expected at least one loss, found none; see configs/')
        self.components(('loss', 'types'), cfg['types'])
        for i, coef in enumerate(cfg['coef']):
            self.value(('loss', 'coef', i), coef, float)
        if len(cfg['types']) not in (1, len(cfg['coef'])):
            set_last = next((key for _, own in self.chain for key in ('coef', 'types') if key in own.get('loss', {})),
                            'types')
            self.fail(('loss', set_last), f'expected 1 loss or as many as coefficients, found {len(cfg["types"])} in '
                                          f'loss.types and {len(cfg["coef"])} in loss.coef; give every loss its '
                                          'coefficient')
