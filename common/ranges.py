"""Which values a key of a config may have, by the key's name, in one place."""
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

CHANNELS, SIDE, COUNT = 8192, 1 << 16, 10**9


class Range(NamedTuple):
    """Numbers from low to high; open_low, open_high: without the end itself. integer: no fractions."""
    low: float
    high: float
    integer: bool = False
    open_low: bool = False
    open_high: bool = False

    def problem(self, value: Any) -> str:
        """What was expected, or '' if the value fits."""
        fits = _is_number(value) and not (self.integer and not isinstance(value, int)) \
            and (self.low < value or (self.low == value and not self.open_low)) \
            and (value < self.high or (self.high == value and not self.open_high))
        if fits:
            return ''
        kind = 'an integer' if self.integer else 'a number'
        return (f'{kind} {"above" if self.open_low else "of at least"} {self.low:g} and '
                f'{"below" if self.open_high else "at most"} {self.high:g}')


class ListOf(NamedTuple):
    """A list whose items fit. shortest, longest: number of items."""
    item: Range
    shortest: int = 1
    longest: int = 64

    def problem(self, value: Any) -> str:
        if not isinstance(value, list) or not self.shortest <= len(value) <= self.longest:
            count = str(self.shortest) if self.shortest == self.longest else f'{self.shortest} to {self.longest}'
            return f'a list of {count} numbers'
        return next((f'a list of {problem[problem.index(" ") + 1:].replace("number ", "numbers ")}'
                     for problem in map(self.item.problem, value) if problem), '')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scales(value: Any) -> str:
    """Scales on top of the network's: a number or a list."""
    return SCALES.problem(value if isinstance(value, list) else [value])


def _with_one(value: Any) -> str:
    problem = SCALES.problem(value)
    return problem or ('' if 1 in value else 'scales with 1.0 among them, at which logits are returned')


def _groups(value: Any) -> str:
    """custom_cfg of PaddleSeg's optimizers."""
    expected = f'a list of mappings with name and some of {", ".join(GROUP)}'
    if not isinstance(value, list) or not value:
        return expected
    for group in value:
        if not isinstance(group, dict) or not isinstance(group.get('name'), str) or group.keys() - {'name', *GROUP} \
                or any(Range(0, 1000).problem(group[key]) for key in group.keys() - {'name'}):
            return expected
    return ''


def _path(value: Any) -> str:
    return '' if value is None or (isinstance(value, str) and value) else 'a path'


def _name(value: Any) -> str:
    """PaddleSeg evaluates these as Python."""
    named = isinstance(value, str) and re.fullmatch(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*', value)
    return '' if named else 'the name of a class'


GROUP = ('lr_mult', 'weight_decay_mult')
RATE, SCALES = Range(0, 100), ListOf(Range(0, 16, open_low=True))
SIZE = ListOf(Range(1, SIDE, integer=True), 2, 2)
RULES: Mapping[str, Callable[[Any], str]] = {
    'iters': Range(1, COUNT, integer=True).problem, 'batch_size': Range(1, 4096, integer=True).problem,
    'learning_rate': Range(0, 100, open_low=True).problem, 'end_lr': RATE.problem, 'warmup_start_lr': RATE.problem,
    'power': RATE.problem, 'warmup_iters': Range(0, COUNT, integer=True).problem,
    'momentum': Range(0, 1, open_high=True).problem, 'weight_decay': Range(0, 10).problem, 'custom_cfg': _groups,
    **{name: Range(1, CHANNELS, integer=True).problem for name in (
        'ocr_mid_channels', 'ocr_key_channels', 'attn_channels', 'width')},
    'dropout': Range(0, 1, open_high=True).problem, 'num_classes': Range(1, 255, integer=True).problem,
    'n_scales': _with_one, 'scales': _scales, 'pretrained': _path,
    'backbone_indices': ListOf(Range(-64, 64, integer=True)).problem,
    'coarse_multiple': Range(0, 1e6).problem, 'class_uniform': Range(0, 1).problem,
    'crop_size': SIZE.problem, 'stride': SIZE.problem, 'mean': ListOf(Range(-1e6, 1e6)).problem,
    'std': ListOf(Range(0, 1e6, open_low=True)).problem,
    'coef': ListOf(Range(0, 1e6)).problem, 'min_K': Range(1, 1 << 40, integer=True).problem,
    'loss_th': Range(0, 1e6).problem, 'ema': Range(0, 1, open_low=True, open_high=True).problem,
    'early_stop': Range(1, COUNT, integer=True).problem, 'norm_layer': _name, 'arm_type': _name,
}
