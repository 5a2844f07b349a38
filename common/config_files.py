"""YAML files with `_base_`, and overrides of single keys."""
import difflib
import math
import os
from ast import literal_eval
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError

MAX_VALUES = 100_000  # of a file, aliases followed; the largest config has a few hundred


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping with two values, of which YAML takes the second in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            single = isinstance(key, yaml.ScalarNode) and key.tag != 'tag:yaml.org,2002:merge'
            if single and not _same(seen.setdefault(key.value, value), value):
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key {key.value!r} stands twice in one mapping, with different values',
                    key.start_mark)
        return super().construct_mapping(node, deep)


def _same(a: Any, b: Any) -> bool:
    """Whether two nodes, or what is in them, say the same."""
    if isinstance(a, yaml.Node) and isinstance(b, yaml.Node):
        return a is b or (a.tag == b.tag and _same(a.value, b.value))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def load_yaml(text: str) -> Any:
    """The value of YAML text: plain values, no key twice, not nested or aliased without end. Raises YAMLError."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _values(node, {}) > MAX_VALUES:
                raise yaml.YAMLError(f'its aliases stand for more than {MAX_VALUES} values')
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise yaml.YAMLError('it is nested too deep') from None


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """Number of values below a node, aliases followed; infinite where one contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else \
            node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping in one YAML file, without its bases."""
    path = Path(path)
    if path.suffix not in ('.yml', '.yaml') or not path.is_file():
        raise UserError(f'{path}: expected a config file (.yml), found '
                         f'{"another kind of file" if path.exists() else "nothing"}; configs/ has those we ship')
    try:
        dic = load_yaml(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        mark = getattr(error, 'problem_mark', None)
        where = f' line {mark.line + 1}' if mark else ''
        problem = ' '.join(str(getattr(error, 'problem', None) or error).split())
        raise UserError(f'{path}:{where} is not valid YAML: {problem}; '
                         'check the indentation and the colons there') from error
    if not isinstance(dic, dict):
        raise UserError(f'{path}: expected a mapping of keys, found {type(dic).__name__}; see configs/ for examples')
    return dic


def read_chain(path: str) -> list[tuple[str, dict[str, Any]]]:
    """[(file, its own mapping)], the most derived file first."""
    return _read_chain(path, ())


def _read_chain(path: str, above: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    real = os.path.realpath(path)
    if real in above:
        circle = ' -> '.join([os.path.basename(file) for file in above[above.index(real):]] + [os.path.basename(real)])
        raise UserError(f'{path}: key \'_base_\': expected files that do not lead back to themselves, found {circle}; '
                        'remove one of these keys')
    dic = read_yaml(path)
    bases = dic.pop('_base_', [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise UserError(f'{path}: key \'_base_\': expected the path of a config or a list of paths, found '
                        f'{bases!r:.60}; correct it')
    chain = [(path, dic)]
    for base in bases:
        file = os.path.join(os.path.dirname(path), base)
        if not os.path.isfile(file):
            raise UserError(f'{path}: key \'_base_\': expected the path of a config, relative to this one, found '
                            f'{base}, where nothing is; correct it')
        chain += _read_chain(file, (*above, real))
    return chain


def check_mergeable(own: Any, base: Any, path: str, keys: tuple[str, ...] = ()) -> None:
    """UserError where a file has a mapping for what is none in its base, or the other way round."""
    if isinstance(own, dict) and isinstance(base, dict):
        for key in own.keys() & base.keys():
            check_mergeable(own[key], base[key], path, (*keys, str(key)))
    elif base is not None and own is not None and isinstance(own, dict) != isinstance(base, dict):
        wanted = 'a mapping' if isinstance(base, dict) else 'a list' if isinstance(base, list) else 'a single value'
        raise UserError(f'{path}: key {".".join(keys)!r}: expected {wanted}, as its _base_ has, found {own!r:.60}; '
                        'correct it')


def override(dic: Any, item: str) -> None:
    """Apply one `a.b.0.c=value`; the value is a Python or YAML literal, else a string."""
    key, equals, text = item.partition('=')
    if not equals:
        raise UserError(f'--opts {item}: expected key=value, found no "="; for example '
                         '--opts model.n_scales=[0.5,1.0]')
    if not all(key.split('.')):
        raise UserError(f'--opts {item}: expected key=value with a name before and after every dot, found {key!r}; for '
                        'example --opts model.n_scales=[0.5,1.0]')
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        try:
            value = load_yaml(text)
        except (yaml.YAMLError, ValueError):
            item, text = item[:100], text[:100]
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
    in_list = isinstance(dic, list) and isinstance(last, int) and -len(dic) <= last < len(dic)
    if not in_list and not isinstance(dic, dict):
        raise UserError(f'--opts {item}: {key!r} cannot be set there; the parent is {dic!r:.60}')
    dic[last] = value


def nearest(name: object, valid: Iterable[object]) -> str:
    """A hint for an unknown name: similar valid ones, else the first 25 valid ones."""
    names = [str(v) for v in valid]
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    return f'did you mean {" or ".join(near)}?' if near else f'valid names: {", ".join(sorted(names)[:25])}'
