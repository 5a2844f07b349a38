"""docs/segmenter.ipynb runs on toy data: its cells in one namespace, as a kernel would, but without Jupyter."""
import ast
import json
import re

import matplotlib
import pytest

from inference.segmenter import Segmentation
from tests.conftest import ROOT

NOTEBOOK = ROOT / 'docs' / 'segmenter.ipynb'


@pytest.fixture
def cells():
    return [(cell['cell_type'], ''.join(cell['source']), cell) for cell in json.loads(NOTEBOOK.read_text())['cells']]


def test_every_cell_runs(tiny, toy, cells, capsys):
    config, weights = tiny
    paths = {'CONFIG': config, 'WEIGHTS': weights, 'IMAGES': toy / 'leftImg8bit/val'}
    before = matplotlib.get_backend()
    matplotlib.use('agg')
    namespace, shown = {}, []
    try:
        for kind, text, _ in cells:
            if kind == 'code':
                for name, path in paths.items():
                    text = re.sub(f'^{name} = .*', f'{name} = {str(path)!r}', text, flags=re.MULTILINE)
                *body, last = ast.parse(text).body
                value = last.value if isinstance(last, ast.Expr) else None  # what a notebook shows below the cell
                exec(compile(ast.Module(body if value else [*body, last], []), str(NOTEBOOK), 'exec'), namespace)
                shown.append(eval(compile(ast.Expression(value), str(NOTEBOOK), 'eval'), namespace) if value else None)
        printed = capsys.readouterr().out
        assert isinstance(shown[1], Segmentation) and shown[1]._repr_png_().startswith(b'\x89PNG')
        shares = [float(found) for found in re.findall(r'^ *([\d.]+)%  ', printed, re.MULTILINE)]
        assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares)) and shares == sorted(shares, reverse=True)
        assert len(re.findall('% sure on average', printed)) == 3
        titles = [place.get_title() for place in namespace['axes'].flat]
        assert titles[:4] == ['image', 'classes', 'confidence', 'entropy'] and 'weight of 1.5x' in titles
    finally:
        namespace['plt'].close('all')
        matplotlib.use(before)


def test_nothing_of_a_machine_is_kept(cells):
    for kind, _, cell in cells:
        assert kind == 'markdown' or (cell['outputs'] == [] and cell['execution_count'] is None)
    assert not re.search(r'(?<![\w.:/)])/\w+/', NOTEBOOK.read_text())  # any absolute path
