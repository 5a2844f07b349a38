"""YAML files with `_base_`, and overrides of single keys."""
import difflib
import os
from ast import literal_eval
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
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


def read_chain(path: str) -> list[tuple[str, dict[str, Any]]]:
    """[(file, its own mapping)], the most derived file first."""
    dic = read_yaml(path)
    bases = dic.pop('_base_', [])
    chain = [(path, dic)]
    for base in [bases] if isinstance(bases, str) else bases:
        chain += read_chain(os.path.join(os.path.dirname(path), base))
    return chain


def override(dic: Any, item: str) -> None:
    """Apply one `a.b.0.c=value`; the value is a Python or YAML literal, else a string."""
    key, equals, text = item.partition('=')
    if not equals:
        raise UserError(f'--opts {item}: expected key=value, found no "="; for example '
                         '--opts model.n_scales=[0.5,1.0]')
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f'--opts {item}: expected a Python or YAML value, found {text}; check brackets and quotes'
                            ) from None
    parts: list[Any] = [int(part) if part.lstrip('-').isdigit() else part for part in key.split('.')]
    *parents, last = parts
    for part in parents:
        if isinstance(dic, dict) and isinstance(part, str):
            dic.setdefault(part, {})  # the check of the whole config refuses unknown keys
        try:
            dic = dic[part]
        except (KeyError, IndexError, TypeError):
            keys: Iterable[Any] = dic if isinstance(dic, dict) else range(len(dic)) if isinstance(dic, list) else ()
            raise UserError(f'--opts {item}: the config has no {part!r} there; {nearest(part, keys)}') from None
    if (isinstance(dic, list) and not (isinstance(last, int) and last < len(dic))) or not isinstance(dic, (list, dict)):
        raise UserError(f'--opts {item}: {key!r} cannot be set there; the parent is {dic!r:.60}')
    dic[last] = value


def nearest(name: object, valid: Iterable[object]) -> str:
    """A hint for an unknown name: similar valid ones, else the first 25 valid ones."""
    names = [str(v) for v in valid]
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    return f'did you mean {" or ".join(near)}?' if near else f'valid names: {", ".join(sorted(names)[:25])}'
