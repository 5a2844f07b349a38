"""What the pixels of masks mean: a YAML file with one line for each value or colour of the masks.

    0: road                    # a value of grey or palette masks ...
    128 64 128: car            # ... or a colour of RGB or palette masks, R G B
    '#804080': car             # the same colour, quoted because # starts a comment
    255: void                  # ignored in training and evaluation

Several keys may name the same class. Classes are numbered in the order in which they first appear.
"""
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import yaml
from PIL import Image

from common.errors import FileError, UserError
from datasets.labels import CITYSCAPES, IGNORE_INDEX, LabelSet, distinct_colors

VOID = 'void'
KEYS = 'a value of 0-255, three of them (R G B), or \'#rrggbb\''
MANY = 20  # more unknown colours than this in one mask are hardly forgotten classes


@dataclass(frozen=True)
class MaskMapping:
    """The meaning of masks.

    path: the mapping file. by_color: whether masks have colours rather than values. codes: {value, or colour as
    0xRRGGBB: train id or IGNORE_INDEX}. labels: the classes.
    """
    path: str
    by_color: bool
    codes: dict[int, int]
    labels: LabelSet

    def read(self, path: str | os.PathLike) -> np.ndarray:
        """uint8 (H, W) train ids of a mask.

        Raises UserError, with one line, for a file that is not an 8 bit mask of the mapping's kind and for pixels that
        the mapping does not contain.
        """
        wanted = 'colours' if self.by_color else 'values'
        try:
            with Image.open(path) as image:
                mode = image.mode
                pixels = np.array(image.convert('RGB') if mode == 'P' and self.by_color else image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
            raise FileError(f'{path}: expected a mask, found one that cannot be read ({error}); save it '
                            'again') from None
        if mode not in ('1', 'L', 'P', 'RGB', 'RGBA'):
            deep = pixels.dtype.itemsize > 1
            found = f'{8 * pixels.dtype.itemsize} bit' if deep else f'mode {mode}'
            raise UserError(f'{path}: expected an 8 bit mask, found {found}{_span(pixels) if deep else ""}; '
                             'save it as 8 bit grey, palette or RGB')
        if (pixels.ndim == 3) != self.by_color:
            found = 'a mask of colours (RGB)' if pixels.ndim == 3 else f'a grey mask{_span(pixels)}'
            raise UserError(f'{path}: expected a mask of {wanted}, as {self.path} has them, found {found}; use '
                             f'masks of {wanted} or list {"values" if self.by_color else "colours"} in the mapping')
        return self._translate(path, pixels)

    def _translate(self, path: str | os.PathLike, pixels: np.ndarray) -> np.ndarray:
        if self.by_color:
            pixels = pixels.astype(np.int32)
            pixels = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
        codes = np.array(sorted(self.codes), np.int32)
        position = np.searchsorted(codes[:-1], pixels)
        unknown = codes[position] != pixels
        if unknown.any():
            self._refuse(path, *np.unique(pixels[unknown], return_counts=True))
        return np.array([self.codes[code] for code in codes.tolist()], np.uint8)[position]

    def _refuse(self, path: str | os.PathLike, codes: np.ndarray, counts: np.ndarray) -> NoReturn:
        order = np.argsort(-counts, kind='stable')
        found = [f'{self._text(code)} ({count} pixels)' for code, count in zip(codes[order].tolist(), counts[order])]
        more = f' and {len(found) - 4} more' if len(found) > 4 else ''
        first = self._text(codes[order[0]])
        fix = (f'add "{first}: <class>" or "{first}: {VOID}" to it' if len(found) <= MANY else
               'masks must be saved without smoothing, and never as JPEG')
        raise UserError(f'{path}: expected {"colours" if self.by_color else "values"} that {self.path} lists, found '
                         f'{", ".join(found[:4])}{more}; {fix}')

    def _text(self, code: int) -> str:
        return f'{code >> 16} {code >> 8 & 255} {code & 255}' if self.by_color else str(code)


def read_mapping(path: str | os.PathLike) -> MaskMapping:
    """The MaskMapping in a file. Raises UserError with one line that names the file, the line and the key."""
    pairs = [(f'{path}: line {key.start_mark.line + 1}', _text(key),
              value.value.strip() if isinstance(value, yaml.ScalarNode) else '') for key, value in _compose(path)]
    codes: dict[int, str] = {}
    colors: dict[str, tuple[int, ...]] = {}
    kinds: set[str] = set()
    for where, key, name in pairs:
        code, kind = _code(where, key)
        kinds.add(kind)
        if len(kinds) > 1:
            raise UserError(f'{where}: key {key!r}: expected values or colours alone, found a {kind} after the other '
                             'kind; list what the masks have')
        if code in codes:
            raise UserError(f'{where}: key {key!r}: expected every {kind} once, found it a second time; delete one')
        if not name or '\n' in name:
            raise UserError(f'{where}: key {key!r}: expected the name of a class or {VOID}, found {name!r}; write it '
                             f'as {key}: road')
        codes[code] = name
        if name != VOID:
            colors.setdefault(name, (code >> 16, code >> 8 & 255, code & 255))
    if not 1 <= len(colors) <= 255:
        raise UserError(f'{path}: expected 1 to 255 classes besides {VOID}, found {len(colors)}; list the others')
    by_color = 'colour' in kinds
    names = tuple(colors)
    palette = tuple(colors.values()) if by_color else _palette(names)
    ids = {VOID: IGNORE_INDEX, **{name: i for i, name in enumerate(names)}}
    return MaskMapping(str(path), by_color, {code: ids[name] for code, name in codes.items()}, LabelSet(names, palette))


def _compose(path: str | os.PathLike) -> list[tuple[yaml.Node, yaml.Node]]:
    """(key, value) nodes: the text of the file, before YAML converts numbers and drops repeated keys."""
    try:
        root = yaml.compose(Path(path).read_text(encoding='utf-8-sig'), Loader=yaml.SafeLoader)
    except OSError as error:
        raise FileError(f'--mapping {path}: expected a YAML file, found "{error.strerror}"; check the path') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: expected YAML like "0: road", found {" ".join(str(error).split())}; correct it') \
            from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f'{path}: expected lines like "0: road", found {"none" if root is None else "others"}; see '
                         'tools/own_data/mapping.py')
    return root.value


def _text(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return node.value.strip()
    return ' '.join(map(_text, node.value)) if isinstance(node, yaml.SequenceNode) else '{}'


def _code(where: str, key: str) -> tuple[int, str]:
    """(code, kind) of a key; kind: value or colour."""
    if re.fullmatch('#[0-9a-fA-F]{6}', key):
        return int(key[1:], 16), 'colour'
    numbers = [int(part) if re.fullmatch('[0-9]{1,3}', part) else 256 for part in re.split(r'[\s,]+', key)]
    if len(numbers) not in (1, 3) or max(numbers) > 255:
        raise UserError(f'{where}: key {key!r}: expected {KEYS}, found {key!r}; write it as 0: road')
    if len(numbers) == 1:
        return numbers[0], 'value'
    return numbers[0] << 16 | numbers[1] << 8 | numbers[2], 'colour'


def _palette(names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Cityscapes' colours for the names it has, other colours for the rest."""
    known = dict(zip(CITYSCAPES.names, CITYSCAPES.palette))
    colors: dict[str, tuple[int, ...]] = {}
    for name in names:
        color = known.get(name.lower().replace('_', ' '))
        if color is not None and color not in colors.values():
            colors[name] = color
    rest = iter(distinct_colors(len(names) - len(colors), taken=CITYSCAPES.palette))
    return tuple(colors[name] if name in colors else next(rest) for name in names)


def _span(pixels: np.ndarray) -> str:
    return f' with values {pixels.min()} to {pixels.max()}'
