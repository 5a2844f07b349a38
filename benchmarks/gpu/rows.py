"""The rows of the table, what they are compared with, and the goals."""
from collections.abc import Mapping
from typing import Any, NamedTuple

PRECISIONS = ('fp32', 'tf32', 'fp16')
BASE = 'plain fp32'  # what logits and classes are compared with
EAGER = 'torch eager fp16'
SPEED, EAGER_SPEED, MEMORY, LOGITS = 1.5, 2.0, 0.5, 1e-3


class Row(NamedTuple):
    """engine: 'onnxruntime' or 'torch'. form: of the graph, 'plain' or 'ours'. variant: '', or how else it is run."""
    engine: str
    form: str
    precision: str
    variant: str = ''

    @property
    def name(self) -> str:
        words = ('torch', self.variant, self.precision) if self.engine == 'torch' else (
            self.form, self.precision, self.variant)
        return ' '.join(filter(None, words))

    def graph(self, output: str) -> str:
        """The file of the graph with an output, `classes` or `logits`."""
        return f'{self.form}_{stored(self.precision)}_{output}.onnx'


def stored(precision: str) -> str:
    """The precision of a graph that computes in this one: TF32 is a setting, not a type of weights."""
    return 'fp16' if precision == 'fp16' else 'fp32'


ROWS = {row.name: row for row in (
    *(Row('onnxruntime', form, precision, variant) for variant in ('', 'cuda graph') for precision in PRECISIONS
      for form in ('plain', 'ours')),
    *(Row('onnxruntime', form, 'fp16', 'nhwc') for form in ('plain', 'ours')),
    *(Row('torch', 'plain', precision, variant) for variant in ('eager', 'compile') for precision in PRECISIONS))}


def add_ratios(rows: Mapping[str, dict[str, Any]]) -> None:
    """Time and memory of each row relative to the plain graph in its precision, and to PyTorch eager in fp16."""
    for name, row in rows.items():
        plain, eager = rows.get(f'plain {ROWS[name].precision}'), rows.get(EAGER)
        row['faster_than_plain'] = _ratio(plain, row, 'seconds')
        row['faster_than_eager'] = _ratio(eager, row, 'seconds')
        row['memory_of_plain'] = _ratio(row, plain, 'peak_gb')


def _ratio(above: Mapping[str, Any] | None, below: Mapping[str, Any] | None, key: str) -> float | None:
    if above is None or below is None or not above[key] or not below[key]:
        return None
    return above[key] / below[key]


def goals(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each goal with what was found: the fastest variant of ours against the fastest one of the other."""
    found = []
    for precision in PRECISIONS:
        ours, plain = (_fastest(rows, form, precision) for form in ('ours', 'plain'))
        found.append(_goal(rows, 'faster', SPEED, ours, plain))
        found.append(_goal(rows, 'memory', MEMORY, ours, plain))
    ours = _fastest(rows, 'ours', 'fp16')
    found.append(_goal(rows, 'faster', EAGER_SPEED, ours, EAGER))
    found.append(_goal(rows, 'memory', MEMORY, ours, EAGER))
    off = [row['off'] for name, row in rows.items() if (ROWS[name].form, ROWS[name].precision) == ('ours', 'fp32')]
    known = bool(off) and BASE in rows
    worst = max((x for x in off if x is not None), default=None)
    found.append({'goal': f'logits of ours fp32 within {LOGITS:g} of the range of {BASE}', 'found': worst,
                  'result': _result(known, known and None not in off and worst is not None and worst <= LOGITS)})
    return found


def _fastest(rows: Mapping[str, Mapping[str, Any]], form: str, precision: str) -> str:
    names = [name for name in rows if ROWS[name][:3] == ('onnxruntime', form, precision)]
    return min(names, key=lambda name: rows[name]['seconds'], default=f'{form} {precision}')


def _goal(rows: Mapping[str, Mapping[str, Any]], kind: str, wanted: float, ours: str, other: str) -> dict[str, Any]:
    above, below = (rows.get(name) for name in ((other, ours) if kind == 'faster' else (ours, other)))
    ratio = _ratio(above, below, 'seconds' if kind == 'faster' else 'peak_gb')
    text = f'{ours} at least {wanted:g} times as fast as {other}' if kind == 'faster' else \
        f'{ours} with at most {wanted:g} of the memory of {other}'
    reached = ratio is not None and (ratio >= wanted if kind == 'faster' else ratio <= wanted)
    return {'goal': text, 'found': ratio, 'result': _result(ratio is not None, reached)}


def _result(measured: bool, reached: bool) -> str:
    return 'not measured' if not measured else 'reached' if reached else 'missed'
