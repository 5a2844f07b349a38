"""Tables and the curve of a study, from its records alone. What has no record yet is called so."""
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.street import experiments

Records = Mapping[str, Mapping[str, Any]]
MISSING = 'not run yet'
MARK = re.compile(r'(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)', re.DOTALL)


def fill(text: str, records: Records) -> str:
    """A page with the content between each `<!-- table: NAME -->` and `<!-- end -->` made anew.

    A table without a record of its own stays as it is: it was filled from records on another machine.
    """
    def table(found: re.Match[str]) -> str:
        make, group = TABLES[found[2]]
        there = any(record['group'] == group for record in records.values())
        return f'{found[1]}{make(records)}\n{found[3]}' if there else found[0]

    return MARK.sub(table, text)


def percent(value: float | None) -> str:
    return MISSING if value is None else f'{100 * value:.2f}'


def rows(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ['---'] * len(titles), *cells]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def value(records: Records, name: str, key: str = 'miou') -> float | None:
    """A number of a step's outcome, None if there is no record."""
    return records[name]['result'][key] if name in records else None


def per_seed(records: Records, pattern: str, key: str = 'miou') -> list[float | None]:
    """A number of the runs of all seeds; the pattern has {seed}."""
    return [value(records, pattern.format(seed=seed), key) for seed in experiments.SEEDS]


def listed(values: Sequence[float | None]) -> str:
    """The scores of all seeds."""
    return MISSING if all(v is None for v in values) else ' / '.join('-' if v is None else percent(v) for v in values)


def difference(values: Sequence[float | None], base: Sequence[float | None]) -> str:
    """The mean difference of the seeds that both have, in points, and whether it is within the spread between seeds.

    The spread is the larger of both ranges; with one seed in common, that of the other seeds, if there are any.
    """
    pairs = [(v, b) for v, b in zip(values, base) if v is not None and b is not None]
    if not pairs:
        return MISSING
    mean = 100 * sum(v - b for v, b in pairs) / len(pairs)
    sides = [[x for x in side if x is not None] for side in (values, base)]
    spread = 100 * max(max(side) - min(side) for side in sides)
    if max(map(len, sides)) == 1:
        return f'{mean:+.2f} (one seed)'
    one = 'one seed; ' if len(pairs) == 1 else ''
    return f'{mean:+.2f} ({one}{"within" if abs(mean) <= spread else "beyond"} the spread of {spread:.2f})'


def compared(records: Records, titles: tuple[str, str], named: Mapping[str, str], base: str) -> str:
    """Rows of runs with several seeds against those of `base`. named: {what: pattern of the names with {seed}}."""
    reference = per_seed(records, base)
    cells = []
    for what, pattern in named.items():
        scores = per_seed(records, pattern)
        cells.append([what, listed(scores), '-' if pattern == base else difference(scores, reference)])
    return rows([titles[0], f'mIoU of seeds {", ".join(map(str, experiments.SEEDS))}', titles[1]], cells)


def probes(records: Records) -> str:
    named = {probe.text: f'probe-{name}-seed{{seed}}' for name, probe in experiments.PROBES.items()}
    return compared(records, ('what differs', 'against the first row'), named, 'probe-recipe-seed{seed}')


def ideas(records: Records) -> str:
    named = {text: f'{name}-seed{{seed}}' for name, (text, _) in experiments.IDEAS.items()}
    table = compared(records, ('trained with', 'against the first row'), named, 'base-seed{seed}')
    plain = per_seed(records, 'base-seed{seed}', 'plain_miou')
    ema = per_seed(records, 'base-seed{seed}')
    return f'{table}\n| without averaged weights (EMA) | {listed(plain)} | {difference(plain, ema)} |'


def runs(records: Records) -> str:
    cells = []
    for name, iters in (('base-seed0', experiments.BUDGET), ('base-seed1', experiments.BUDGET),
                        ('main', experiments.LONG)):
        result = records[name]['result'] if name in records else None
        cells.append([f'`{name}`', str(iters), percent(result and result['miou']),
                      percent(result and result['accuracy']),
                      f'{result["train_seconds"] / 3600:.1f} h' if result else MISSING,
                      f'`{result["sha256"]}`' if result else MISSING])
    return rows(['run', 'iterations', 'mIoU', 'accuracy', 'time', 'SHA-256 of the weights'], cells)


def classes(records: Records) -> str:
    done = [name for name in ('base-seed0', 'main') if name in records]
    if not done:
        return MISSING
    names = [name for name, iou in records[done[0]]['result']['iou'].items() if iou is not None]
    return rows(['run', *names], [[f'`{run}`', *(f'{100 * (records[run]["result"]["iou"][name] or 0):.1f}'
                                                for name in names)] for run in done])


def scales(records: Records) -> str:
    cells = []
    for name in experiments.SCALES:
        scores = [value(records, experiments.score_name(weights, name, flip))
                  for weights in experiments.SCORED for flip in (False, True)]
        cells.append([name, *map(percent, scores)])
    titles = [title for weights in experiments.SCORED for title in (f'`{weights}`', f'`{weights}`, flip')]
    return rows(['scales', *titles], cells)


def precision(records: Records) -> str:
    return rows(['precision', *(f'`{weights}`' for weights in experiments.SCORED)],
                [[name, *(percent(value(records, f'precision-{weights}-{name}')) for weights in experiments.SCORED)]
                 for name in experiments.PRECISIONS])


RARE = ('fence', 'pole', 'traffic sign', 'person', 'bicycle')  # each less than 2% of the pixels


def labels(records: Records, prefix: str = 'labels') -> str:
    cells = []
    for name in experiments.THRESHOLDS:
        result = records[f'{prefix}-{name}']['result'] if f'{prefix}-{name}' in records else {}
        rare = [result.get('classes', {}).get(rare, {}).get('coverage') for rare in RARE]
        cells.append([name, *(percent(result.get(key)) for key in ('coverage', 'agreement', 'miou')),
                      *(map(percent, rare) if result else '-' * len(RARE))])
    return rows(['threshold', 'coverage', 'agreement', 'mIoU of what is kept', *(f'{name}: coverage' for name in RARE)],
                cells)


TITLES = ('training data', 'against fine images alone')


def students(records: Records) -> str:
    named = {f'auto-labels, {threshold}': f'student-{threshold}-seed{{seed}}' for threshold in experiments.THRESHOLDS}
    return compared(records, TITLES, {'fine images alone': 'base-seed{seed}', **named}, 'base-seed{seed}')


def short_students(records: Records) -> str:
    """For as many iterations, and for as many fine samples: those of twice as many iterations with auto-labels."""
    iters = experiments.PROBE_ITERS

    def named(count: int) -> dict[str, str]:
        return {f'auto-labels, {threshold}': f'short-{threshold}-{count}-seed{{seed}}'
                for threshold in experiments.THRESHOLDS}

    base = f'short-none-{iters}-seed{{seed}}'
    same = compared(records, TITLES, {
        'fine images alone': base, **named(iters),
        'the extra images with their own labels': f'short-truth-{iters}-seed{{seed}}'}, base)
    longer = compared(records, TITLES, {
        'fine images alone': base, **named(2 * iters),
        'fine images alone, twice as many': f'short-none-{2 * iters}-seed{{seed}}'}, base)
    return f'For the same number of iterations:\n\n{same}\n\nFor the same number of fine samples:\n\n{longer}'


def finetune(records: Records) -> str:
    cells = []
    for name, text in (('scratch', 'from scratch'), ('finetuned', 'from the weights of `main`, `fresh_head`')):
        cells.append([text, *(listed(per_seed(records, f'{name}-{iters}-seed{{seed}}')) for iters in (1, 50, 200))])
    return rows(['start', 'at the start', '50 iterations', '200 iterations'], cells)


def teacher(records: Records) -> str:
    return labels(records, 'teacher')


TABLES = {  # name: how it is made, and the group of the steps without which it is left alone
    'runs': (runs, 'main'), 'classes': (classes, 'main'), 'probes': (probes, 'probes'), 'ideas': (ideas, 'ideas'),
    'scales': (scales, 'scales'), 'precision': (precision, 'precision'), 'labels': (labels, 'labels'),
    'students': (students, 'labels'), 'teacher': (teacher, 'students'), 'short-students': (short_students, 'students'),
    'finetune': (finetune, 'finetune')}


# ---------------------------------------------------------------- the curve

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 320, 56, 40
COLORS = ('#0f766e', '#b45309', '#1d4ed8')


def curve(series: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """An SVG of mIoU (0..1) over iterations. series: {name: [(iteration, mIoU)]}, each drawn as a line."""
    points = [point for line in series.values() for point in line]
    right = max([x for x, _ in points], default=1)
    top = max(0.1, -(-max([y for _, y in points], default=0.1) // 0.1) * 0.1)
    plot_width, plot_height = WIDTH - LEFT - 24, HEIGHT - BOTTOM - 16

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / right * plot_width, 16 + (1 - y / top) * plot_height

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
             'font-family="DejaVu Sans, Arial, sans-serif" font-size="12" fill="#334155">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>']
    for i in range(round(top * 10) + 1):
        x, y = place(0, i / 10)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{LEFT + plot_width}" stroke="#e2e8f0"/>'
                     f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{10 * i}</text>')
    for i in range(5):
        x, y = place(right * i / 4, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{right * i / 4:.0f}</text>')
    parts.append(f'<text x="{LEFT + plot_width / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">iterations</text>'
                 f'<text x="14" y="{HEIGHT / 2 - 10:.1f}" transform="rotate(-90 14 {HEIGHT / 2 - 10:.1f})" '
                 'text-anchor="middle">mIoU (%)</text>')
    for i, (name, line) in enumerate(series.items()):
        path = 'L'.join('{:.1f} {:.1f}'.format(*place(x, y)) for x, y in line)
        color, y = COLORS[i % len(COLORS)], HEIGHT - BOTTOM - 14 - 18 * (len(series) - 1 - i)
        parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>'
                     f'<path d="M{WIDTH - 250} {y}h24" stroke="{color}" stroke-width="2"/>'
                     f'<text x="{WIDTH - 220}" y="{y + 4}">{name}</text>')
    return '\n'.join([*parts, '</svg>', ''])


def curves(records: Records) -> str:
    """The curve of the runs with the config as it is: the long one, if it is there, and the short one."""
    series: dict[str, list[tuple[int, float]]] = {}
    for name, text in (('main', 'long run'), ('base-seed0', 'short run')):
        if name in records:
            found = records[name]['result']['curve']
            series[f'{text}, averaged weights'] = found['ema_eval'] or found['eval']
            if found['ema_eval']:
                series[f'{text}, weights'] = found['eval']
    return curve(dict(list(series.items())[:len(COLORS)]))
