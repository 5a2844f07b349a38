"""The table of docs/design.md: who may import whom, no circles, no file over 400 lines, nothing at import."""
import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ('configs', 'datasets', 'models', 'losses', 'engine', 'tools', 'benchmarks', 'tests', 'train', 'val', 'predict')
MAY_IMPORT = {'datasets': {'datasets'}, 'models': {'models'}, 'losses': {'losses'}, 'engine': {'engine'},
              'common/registry.py': {'engine', 'models', 'datasets', 'losses'},
              'tools': {'tools', 'datasets', 'models', 'losses', 'engine'}}
OUTSIDE = {'models': {'paddle', 'numpy'}, 'losses': {'paddle'},
           'datasets': {'numpy', 'cv2', 'paddle', 'paddleseg', 'PIL', 'tqdm', 'yaml'}}
FILES = sorted(p for p in ROOT.rglob('*.py')
               if not any(part.startswith('.') or part in ('data', 'output') for part in p.relative_to(ROOT).parts))


def name(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """Every module that a file imports, absolute."""
    package = path.relative_to(ROOT).with_suffix('').parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) + '.' if node.level else ''
            module = base + (node.module or '')
            yield module
            yield from (f'{module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=name)
def test_imports_follow_the_table(path):
    room = path.relative_to(ROOT).parts[0]
    tops = {module.split('.')[0] for module in imports(path)}
    allowed = MAY_IMPORT.get(name(path), MAY_IMPORT.get(room))
    if allowed is not None:
        assert not (tops & set(ROOMS)) - allowed, f'{name(path)} imports from rooms it does not know'
    if room in OUTSIDE:
        unknown = tops - OUTSIDE[room] - sys.stdlib_module_names - {room}
        assert not unknown, f'{name(path)} imports a library its room does not use'
    if room != 'tests' and room != 'benchmarks':
        assert not tops & {'tests', 'benchmarks'}


def test_no_circles():
    modules = {'.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): p for p in FILES}
    graph = {module: {m for m in imports(path) if m in modules and m != module} for module, path in modules.items()}
    done = set()

    def visit(module, above):
        assert module not in above, f'circle: {" -> ".join([*above, module])}'
        if module not in done:
            for other in graph[module]:
                visit(other, [*above, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    assert 'common.registry' in done and graph['train'], 'the walk must have seen the real tree'


@pytest.mark.parametrize('path', FILES, ids=name)
def test_files_stay_readable_and_do_nothing_at_import(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.parse(text).body:
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        setup = path.name == 'conftest.py' or ast.unparse(node).startswith('sys.path.insert')
        assert not is_call or setup, f'line {node.lineno} runs at import'
