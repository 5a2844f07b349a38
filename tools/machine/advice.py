"""Which batch, precision and recomputation fit this machine, from the measured steps."""
from collections.abc import Sequence
from typing import Any, NamedTuple

from tools.machine.checks import step_name
from tools.machine.rows import PASSED, Row

BATCHES = (8, 4, 2, 1)
# Beside what Paddle has reserved, a card holds CUDA's context and libraries, and pieces between reserved blocks.
CONTEXT_GB, SHARE = 1.0, 0.95


class Fit(NamedTuple):
    """A configuration, its expected or measured peak in GiB, and its seconds per image with one image."""
    precision: str
    recompute: bool
    batch: int
    peak_gb: float
    seconds: float


def _steps(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.status == PASSED and 'fixed_gb' in row.data and row.data['processes'] == 1]


def peak_of(row: Row) -> float:
    """What a step has taken of the card: on a GPU, what was reserved, which is what the next one cannot have."""
    return float(row.data.get('reserved_gb') or row.peak_gb or 0)


def candidates(rows: Sequence[Row], room_gb: float, wanted: int, on_gpu: bool) -> list[Fit]:
    """For every measured precision and recomputation the largest batch that should fit; the best first.

    wanted: images that batch norm should see. Those that reach it come first, then the fastest per image.
    """
    room, found = room_gb * SHARE - (CONTEXT_GB if on_gpu else 0), []
    broken = {row.data.get('check') for row in rows if row.status != PASSED}
    for row in _steps(rows):
        data = row.data
        if data['batch'] > 1:
            continue
        each = max(peak_of(row) - data['fixed_gb'], 1e-3)
        for batch in BATCHES:
            peak = data['fixed_gb'] + batch * each
            if peak <= room and step_name(data['precision'], data['recompute'], batch) not in broken:
                found.append(Fit(data['precision'], data['recompute'], batch, peak, row.seconds or 0.0))
                break
    without = {fit.precision: fit.seconds for fit in found if not fit.recompute}

    def rank(fit: Fit) -> tuple[bool, float, bool]:
        # Recomputation is work on top; where it seems faster, the machine was busy in between.
        return fit.batch < wanted, max(fit.seconds, without.get(fit.precision, 0.0) * fit.recompute), fit.recompute

    return sorted(found, key=rank)


def measured(fit: Fit, rows: Sequence[Row]) -> Row | None:
    """The row of this very configuration, if it was run and went through."""
    return next((row for row in _steps(rows) if (row.data['precision'], row.data['recompute'], row.data['batch'])
                 == (fit.precision, fit.recompute, fit.batch)), None)


def describe(fit: Fit, rows: Sequence[Row], room_gb: float) -> str:
    row = measured(fit, rows)
    flags = f'--batch_size {fit.batch} --precision {fit.precision}' + (' --recompute' if fit.recompute else '')
    if row is None:
        return f'{flags} (about {fit.peak_gb:.1f} of {room_gb:.1f} GiB, estimated from batch 1)'
    return (f'{flags} ({peak_of(row):.1f} of {room_gb:.1f} GiB, {(row.seconds or 0) / fit.batch:.3f} s per image, '
            'measured)')


def last_line(rows: Sequence[Row], room_gb: float, wanted: int, what: dict[str, Any]) -> str:
    """what: 'where' ('this card'), 'network', 'size'."""
    text = f'{what["network"]} at {what["size"][0]}x{what["size"][1]}'
    fits = candidates(rows, room_gb, wanted, what['on_gpu'])
    if not fits:
        tried = any(row.status == PASSED or row.data.get('out_of_memory')
                    for row in rows if row.name.startswith('step '))
        why = 'none of the measured steps; use a smaller crop' if tried else 'not known, because no step was measured'
        return f'What fits {what["where"]} ({text}): {why}'
    best = fits[0]
    line = f'What fits {what["where"]} ({text}): {describe(best, rows, room_gb)}'
    plain = next((fit for fit in fits if fit.precision == 'fp32'), None)
    if plain and best.precision != 'fp32':
        line += f'; in fp32: {describe(plain, rows, room_gb)}'
    if best.batch < wanted:
        line += '; batch norm sees one image: use options.freeze_batch_norm=True'
    return line
