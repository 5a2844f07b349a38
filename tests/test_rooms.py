"""The table of docs/design.md: who may import whom, no import cycles, short files, nothing private read elsewhere."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ('configs', 'datasets', 'models', 'losses', 'common', 'training', 'inference', 'tools', 'benchmarks', 'deploy',
         'tests', 'train', 'val', 'predict', 'export')
BASE = {'datasets', 'models', 'losses', 'common'}
# Room, or single file -> rooms and single modules that it may import.
MAY_IMPORT = {'datasets': {'datasets', 'common.errors'}, 'models': {'models', 'common.errors'},
              'losses': {'losses', 'common.errors'}, 'common': {'common'},
              'models/paddleseg_models.py': {'models', 'common.errors', 'common.paddle2_arithmetic'},
              'losses/paddleseg_losses.py': {'losses', 'common.errors', 'common.paddle2_arithmetic'},
              'common/registry.py': BASE, 'common/builder.py': BASE,
              'training': BASE | {'training'}, 'inference': BASE | {'inference'},
              'tools': BASE | {'training', 'inference', 'tools'}, 'deploy': set()}
OUTSIDE = {'models': {'paddle', 'paddleseg', 'numpy'}, 'losses': {'paddle', 'numpy', 'cv2'},
           'datasets': {'numpy', 'cv2', 'paddle', 'paddleseg', 'PIL', 'tqdm', 'yaml'},
           'deploy': {'numpy', 'cv2', 'onnxruntime', 'PIL'}}
# Private names of Paddle, which has no public ones for these: {file: names}.
PADDLES_OWN = {
    'models/layers.py': {'_mean', '_variance', '_epsilon'},  # of batch norm
    'models/paddleseg_mscale_ocrnet.py': {'_padding'},  # of a convolution
    'models/recompute.py': {'_momentum', '_amp_level', '_amp_dtype'},
    'tools/machine/memory_trace.py': {'_C_ops'},
    'training/gradient_step.py': {'_BatchNormBase', '_mean', '_variance', '_epsilon', '_use_global_stats'},
    'training/trainer.py': {'_learning_rate'},
}
NAMED_TUPLES = {'_replace', '_asdict', '_fields'}  # public methods, underscored to leave names to the fields
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
    modules = set(imports(path))
    tops = {module.split('.')[0] for module in modules}
    allowed = MAY_IMPORT.get(name(path), MAY_IMPORT.get(room))
    if allowed is not None:
        unknown = {module for module in modules if module.split('.')[0] in ROOMS
                   and not any(f'{module}.'.startswith(f'{other}.') for other in allowed)}
        unknown -= {other.split('.')[0] for other in allowed}  # `from common import errors` names both
        assert not unknown, f'{name(path)} imports what its room may not'
    if room in OUTSIDE:
        unknown = tops - OUTSIDE[room] - sys.stdlib_module_names - {room, 'common'}
        assert not unknown, f'{name(path)} imports a library that its room does not use'
    if room != 'tests' and room != 'benchmarks':
        assert not tops & {'tests', 'benchmarks'}


def test_no_import_cycles():
    modules = {'.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): p for p in FILES}
    graph = {module: {m for m in imports(path) if m in modules and m != module} for module, path in modules.items()}
    done = set()

    def visit(module, above):
        assert module not in above, f'import cycle: {" -> ".join([*above, module])}'
        if module not in done:
            for other in graph[module]:
                visit(other, [*above, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    assert 'common.registry' in done and graph['train'], 'the walk must have seen the real tree'


def test_one_place_makes_the_scripts_importable_from_any_directory():
    changing = [name(path) for path in FILES if not name(path).startswith('tests/') and 'sys.path' in path.read_text()]
    assert changing == ['tools/shared/repository.py']


def test_no_script_imports_paddle_before_it_runs():
    """--help is fast, and tools that need no Paddle neither wait for it nor print its warnings."""
    scripts = [path for path in [*ROOT.glob('*.py'), *ROOT.glob('tools/*.py')] if 'cli.run(' in path.read_text()]
    modules = [name(path).removesuffix('.py').replace('/', '.') for path in scripts]
    assert {'train', 'export', 'tools.prepare_cityscapes'} <= set(modules)
    code = f'import sys, {", ".join(modules)}; print(*{{"paddle", "paddleseg"}} & {{*sys.modules}})'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('\n', '')


@pytest.mark.parametrize('path', FILES, ids=name)
def test_files_stay_readable_and_do_nothing_at_import(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.parse(text).body:
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        setup = path.name == 'conftest.py' or ast.unparse(node).startswith('sys.path.insert')
        assert not is_call or setup, f'line {node.lineno} runs at import'


def _private_reads(tree):
    """(line, name) of every x._name whose name the file itself does not define; x may be anything but self or cls."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    standard = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                for alias in node.names if alias.name.split('.')[0] in sys.stdlib_module_names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith('_') and not node.attr.startswith('__'):
            owner = node.value.id if isinstance(node.value, ast.Name) else ''
            if owner not in {'self', 'cls', *standard} and node.attr not in own | NAMED_TUPLES:
                yield node.lineno, node.attr


@pytest.mark.parametrize('path', [p for p in FILES if p.relative_to(ROOT).parts[0] != 'tests'], ids=name)
def test_no_private_attribute_of_another_file_is_read(path):
    allowed = PADDLES_OWN.get(name(path), set())
    found = [(line, attribute) for line, attribute in _private_reads(ast.parse(path.read_text()))
             if attribute not in allowed]
    assert not found, f'{name(path)} reads what is private elsewhere'


def test_private_reads_are_seen():
    tree = ast.parse('import os\ndef f(x):\n    x._there\n    x._here\n    os._exit(1)\nclass A:\n    _here = 1\n')
    assert list(_private_reads(tree)) == [(3, '_there')]
