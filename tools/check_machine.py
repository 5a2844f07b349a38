"""Checks whether this machine trains and evaluates as it should, and measures how fast and with how much memory.

    python tools/check_machine.py
    python tools/check_machine.py --quick
    python tools/check_machine.py --only losses network --json machine.json
    python tools/check_machine.py --card 24 80

Takes minutes and needs no data: pictures are drawn, weights random. On a GPU: the recipe's network at 1024x2048, its
logits and gradients against the CPU, steps in every precision, all GPUs under the launcher. On a CPU: the toy config's
network, and what takes no GPU. Every check runs in a process of its own; one that fails is one line, and the others go
on. The last line says which batch, precision and recomputation fit. Exit status 1 if a check failed. --card says the
same of GPUs with so many GB that are not there, predicted on the CPU (tools/machine/memory_trace.py).
"""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

from common import cli
from common.atomic_io import write_atomically
from common.errors import UserError
from tools.machine import advice, cards, checks, environment, rows
from tools.machine.environment import Facts
from tools.machine.rows import GB, Row, Settings

FACTS = 'facts.json'
VERSION = 1  # of the JSON


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='a minute: the toy network, fewer rounds')
    parser.add_argument('--size', nargs=2, type=int, metavar=('H', 'W'),
                        help='of images and crops (default: 1024 2048 on a GPU; 128 256 on a CPU and with --quick)')
    parser.add_argument('--network', choices=('recipe', 'toy'), help='default: recipe on a GPU, else toy')
    parser.add_argument('--device', choices=('auto', 'cpu', 'gpu'), default='auto', help='default: a GPU if there is')
    parser.add_argument('--only', nargs='+', metavar='CHECK', help='these checks: ' + ', '.join(
        repr(name) for name in checks.NAMES))
    parser.add_argument('--card', nargs='+', type=float, metavar='GB',
                        help='predict what fits GPUs of so many GB, on a CPU, and check nothing')
    parser.add_argument('--json', metavar='FILE', help='write facts, problems and results, to send in')
    parser.add_argument('--seed', type=int, default=0, help='of weights, pictures and labels (default: 0)')
    parser.add_argument('--part', nargs=2, metavar=('CHECK', 'FOLDER'), help=argparse.SUPPRESS)
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    if args.size and min(args.size) < 64:
        parser.error(f'--size: expected at least 64 64, found {args.size[0]} {args.size[1]}')
    if args.card and (min(args.card) <= 0 or args.only or args.json or args.quick or args.device == 'gpu'):
        parser.error('--card: expected positive numbers and no more than --network, --size and --seed beside them')
    for name in args.only or ():
        if name not in checks.NAMES:
            parser.error(f'--only: expected names among {", ".join(checks.NAMES)}, found {name!r}')
    return args


def run_part(name: str, folder: str) -> int:
    """A check in its own process, as `checks.run` starts it."""
    cli.start_paddle()
    if name == FACTS:
        (Path(folder) / FACTS).write_text(json.dumps(environment.paddle_facts()))
        return 0
    return int(not checks.run_part(name, Settings.load(folder)))


def find_facts(folder: str) -> Facts:
    """The machine, and what Paddle says of it in a process of its own."""
    facts = environment.system_facts()
    done = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--part', FACTS, folder], capture_output=True,
                          text=True)
    path = Path(folder) / FACTS
    if not path.exists():
        return replace(facts, paddle_error=rows.one_line(done.stderr or f'ended with status {done.returncode}'))
    found = json.loads(path.read_text())
    return replace(facts, **{**found, 'architectures': tuple(found['architectures'])})


def choose(args: argparse.Namespace, facts: Facts, folder: str) -> Settings:
    """What to check where, from the flags and from what there is."""
    device = ('gpu' if facts.gpus else 'cpu') if args.device == 'auto' else args.device
    if device == 'gpu' and not facts.gpus:
        raise UserError('--device gpu: expected a GPU and a Paddle built for CUDA, found none that Paddle sees; see '
                        'the lines under "problems", or use --device cpu')
    network = args.network or ('recipe' if device == 'gpu' and not args.quick else 'toy')
    size = args.size or ((1024, 2048) if device == 'gpu' and not args.quick else (128, 256))
    return Settings(device, network, tuple(size), args.seed, args.quick, facts.gpus, folder,
                    facts.omp_threads)


def show(found: list[Row]) -> None:
    for line in rows.lines(found):
        print(line, flush=True)


def run_all(names: list[str], settings: Settings, facts: Facts) -> list[Row]:
    """Every check, its rows printed as they come."""
    found = []
    for name in names:
        if reason := checks.unfit(name, settings, facts):
            new = [Row(name, status=rows.NOT_RUN, reason=reason, data={'check': name})]
        else:
            new = checks.run(name, settings)
        show(new)
        found += new
    return found


def room_of(settings: Settings, facts: Facts) -> float:
    """GiB that a run may have: the card's memory, of several cards the smallest, or the free memory."""
    cards = [card.memory for card in environment.visible_cards(facts) if card.memory]
    return (min(cards) if settings.device == 'gpu' and cards else facts.memory_free) / GB


def confirm(found: list[Row], settings: Settings, facts: Facts) -> list[Row]:
    """Run what seems to fit best; what does not fit after all is tried with half the batch."""
    added: list[Row] = []
    fits = advice.candidates(found, room_of(settings, facts), wanted(settings), settings.device == 'gpu')
    batch = fits[0].batch if fits else 1
    while batch > 1:
        name = checks.step_name(fits[0].precision, fits[0].recompute, batch)
        new = checks.run(name, settings)
        show(new)
        added += new
        if not any(row.data.get('out_of_memory') for row in new):
            break
        batch //= 2
    return added


def wanted(settings: Settings) -> int:
    """Images per process, so that batch norm sees at least two."""
    return 1 if settings.device == 'gpu' and settings.gpus > 1 else 2


def check(args: argparse.Namespace, folder: str) -> int:
    start = time.perf_counter()
    facts = find_facts(folder)
    problems = environment.problems(facts)
    print('\n'.join(environment.report(facts)))
    print('problems   none' if not problems else '\n'.join(f'problem    {line}' for line in problems))
    if not facts.paddle:
        raise UserError('nothing can be checked without Paddle; see the problem above')
    settings = choose(args, facts, folder)
    settings.save()
    print(f'\n{settings.network} network, {settings.size[0]}x{settings.size[1]}, on the {settings.device.upper()}\n')
    print(rows.line(rows.HEAD), flush=True)
    found = run_all(checks.chosen(args.only), settings, facts)
    if not settings.quick:
        found += confirm(found, settings, facts)
    counts = {status: sum(row.status == status for row in found) for status in (rows.PASSED, rows.FAILED, rows.NOT_RUN)}
    where = 'this card' if settings.device == 'gpu' else 'the memory of this machine'
    line = advice.last_line(found, room_of(settings, facts), wanted(settings), {
        'where': where, 'network': f'{settings.network} network', 'size': settings.size,
        'on_gpu': settings.device == 'gpu'})
    seconds = time.perf_counter() - start
    if args.json:
        report = {'version': VERSION, 'facts': asdict(facts), 'problems': problems, 'settings': {
            field.name: getattr(settings, field.name) for field in fields(settings) if field.name != 'folder'},
            'results': [asdict(row) for row in found], 'counts': counts, 'advice': line, 'seconds': round(seconds)}
        write_atomically(args.json, json.dumps(report, indent=1).encode())
    print(f'\n{counts[rows.PASSED]} passed, {counts[rows.FAILED]} failed, {counts[rows.NOT_RUN]} not run, '
          f'{seconds:.0f} s' + (f'; written: {args.json}' if args.json else ''))
    print(line)
    return int(counts[rows.FAILED] > 0)


def predict(args: argparse.Namespace, folder: str) -> int:
    """What fits the cards of --card."""
    settings = Settings('cpu', args.network or 'recipe', tuple(args.size or (1024, 2048)), args.seed, folder=folder)
    height, width = settings.size
    found = cards.trace(settings, lambda line: print(line, flush=True))
    print(f'\n{settings.network} network, {height}x{width}, predicted from the tensors of smaller steps on this CPU; '
          'no GPU has confirmed it\n')
    print('\n'.join(cards.lines(settings, found, args.card)))
    return 0


def main(argv: list[str]) -> int:
    args = parse_args(argv)
    if args.part:
        return run_part(*args.part)
    folder = tempfile.mkdtemp(prefix='check_machine_')
    try:
        return predict(args, folder) if args.card else check(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    cli.run(main)
