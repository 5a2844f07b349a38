"""What the machine is, and what is wrong with it, each problem as one line with its fix."""
import os
import platform
import resource
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import cuda_architectures

GB, MB = 1 << 30, 1 << 20
SAMPLE = 1024 * 2048 * 4  # bytes of a sample in shared memory: image and labels in 8 bits (datasets.normalization)
SAMPLES = 11  # per process: two batches of one image for each of five workers, and the one in use
CHECKPOINTS = 4 * GB  # five of HRNet-W48 with its momentum, and the best model
LEAST_MEMORY = 4 * GB  # HRNet-W48 with its optimizer and a step of a small crop on a CPU
OPEN_FILES = 1024
# NVIDIA's least driver for each major version of CUDA, with its minor version compatibility.
DRIVERS = {'11': 450, '12': 525, '13': 580}
PACKAGES = 'https://www.paddlepaddle.org.cn/install/quick'


@dataclass
class Card:
    """A GPU: its name, bytes of memory, bytes that are taken, compute capability as 86, driver's version."""
    name: str
    memory: int = 0
    used: int = 0
    capability: int = 0
    driver: str = ''


@dataclass
class Facts:
    """paddle: version, or '' if it cannot be imported, which paddle_error tells. cuda, cudnn: what it was compiled for,
    or ''. architectures: those it has code for, as 86; empty if unknown. gpus: how many Paddle sees. cards: all that
    the driver shows. Sizes are bytes; None is unknown.
    """
    paddle: str = ''
    paddle_error: str = ''
    cuda: str = ''
    cudnn: str = ''
    architectures: tuple[int, ...] = ()
    gpus: int = 0
    cards: list[Card] = field(default_factory=list)
    backends: list[str] = field(default_factory=list)
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    python: str = ''
    system: str = ''
    processor: str = ''
    cores: int = 1
    omp_threads: str | None = None
    memory: int = 0
    memory_free: int = 0
    shm_free: int | None = None
    disk_free: int = 0
    temporary_free: int = 0
    open_files: int = OPEN_FILES


def system_facts() -> Facts:
    """Everything but what Paddle says."""
    total, free = _memory()
    shm = Path('/dev/shm')
    return Facts(
        cards=_cards(), visible=os.environ.get('CUDA_VISIBLE_DEVICES'), python=platform.python_version(),
        system=f'{platform.system()} {platform.machine()}', processor=_processor(),
        cores=len(os.sched_getaffinity(0)), omp_threads=os.environ.get('OMP_NUM_THREADS'), memory=total,
        memory_free=free, shm_free=shutil.disk_usage(shm).free if shm.is_dir() else None,
        disk_free=shutil.disk_usage('.').free, temporary_free=shutil.disk_usage(tempfile.gettempdir()).free,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def paddle_facts() -> dict[str, Any]:
    """What Paddle says, as fields of Facts. To be called in a process of its own: it may not survive."""
    import paddle

    from inference import backends
    version = paddle.version
    with_cuda = paddle.is_compiled_with_cuda()
    return {'paddle': paddle.__version__, 'cuda': str(version.cuda()) if with_cuda else '',
            'cudnn': str(version.cudnn()) if with_cuda else '', 'architectures': cuda_architectures.of_build(paddle),
            'gpus': paddle.device.cuda.device_count() if with_cuda else 0, 'backends': backends.installed()}


def visible_cards(facts: Facts) -> list[Card]:
    """The cards that CUDA_VISIBLE_DEVICES leaves, where it has numbers; otherwise all."""
    numbers = (facts.visible or '').split(',')
    if facts.visible is None or not all(number.strip().isdigit() for number in numbers):
        return [] if facts.visible in ('', '-1') else facts.cards
    return [facts.cards[int(number)] for number in numbers if int(number) < len(facts.cards)]


def problems(facts: Facts) -> list[str]:
    """One line for each: what was found, what was expected, what to do."""
    found = [*_paddle_problems(facts), *_memory_problems(facts)]
    if facts.omp_threads and facts.omp_threads.isdigit() and int(facts.omp_threads) < facts.cores:
        found.append(f'OMP_NUM_THREADS={facts.omp_threads}: {facts.omp_threads} of {facts.cores} cores will be used; '
                     'unset it to use all')
    if facts.open_files not in (-1, resource.RLIM_INFINITY) and facts.open_files < OPEN_FILES:
        found.append(f'ulimit -n: at least {OPEN_FILES} open files expected for data workers, {facts.open_files} found;'
                     f' ulimit -n {OPEN_FILES}')
    return found


def _paddle_problems(facts: Facts) -> list[str]:
    if not facts.paddle:
        return [f'Paddle cannot be imported: {facts.paddle_error or "no message"}; '
                'pip install --no-deps -r requirements.txt']
    found, cards = [], visible_cards(facts)
    if facts.visible == '':
        found.append('CUDA_VISIBLE_DEVICES is set but empty: no GPU is used, and paddle.distributed.launch fails with '
                     '"list index out of range"; unset it (env -u CUDA_VISIBLE_DEVICES)')
    if not facts.cuda:
        if facts.cards:
            found.append(f'{_cards_text(facts.cards)} found, but Paddle {facts.paddle} is built for CPUs; install '
                         f'paddlepaddle-gpu for this driver in its place ({PACKAGES})')
        return found
    if not facts.cards and not facts.gpus:
        found.append(f'Paddle is built for CUDA {facts.cuda}, but there is no GPU or no driver (nvidia-smi shows none);'
                     ' install the driver, or start the container with --gpus all')
    elif not facts.gpus and facts.visible != '':
        found.append(f'{_cards_text(facts.cards)} found by the driver, but Paddle sees no GPU; '
                     + (f'CUDA_VISIBLE_DEVICES is {facts.visible}: correct it' if facts.visible is not None else
                        'the driver may be too old for its CUDA'))
    for card in {card.name: card for card in cards}.values():
        found += _card_problems(facts, card)
    for card in cards:
        if card.used > GB:
            found.append(f'{card.name}: {card.used / GB:.1f} of {card.memory / GB:.1f} GiB are taken by other processes'
                         '; end them, or choose another card with CUDA_VISIBLE_DEVICES')
    return found


def _card_problems(facts: Facts, card: Card) -> list[str]:
    text = cuda_architectures.problem(card.name, card.capability, facts.architectures,
                                      f'{facts.paddle} (CUDA {facts.cuda})')
    found = [text] if text else []
    least = DRIVERS.get(facts.cuda.split('.')[0])
    major = card.driver.split('.')[0]
    if least and major.isdigit() and int(major) < least:
        found.append(f'driver {card.driver} is too old for CUDA {facts.cuda}, which takes {least} or newer; update the '
                     'driver, or install a build of Paddle for an older CUDA')
    return found


def _memory_problems(facts: Facts) -> list[str]:
    found, processes = [], max(1, facts.gpus)
    need = processes * SAMPLES * SAMPLE
    if facts.shm_free is not None and facts.shm_free < need:
        found.append(f'/dev/shm: {need / MB:.0f} MiB expected for the data workers ({processes} process(es) x {SAMPLES}'
                     f' samples x {SAMPLE / MB:.0f} MiB), {facts.shm_free / MB:.0f} MiB free; start the container with '
                     f'--shm-size={max(1, round(2 * need / GB))}g, or use fewer --num_workers')
    if facts.memory_free < LEAST_MEMORY:
        found.append(f'memory: {LEAST_MEMORY / GB:.0f} GiB expected, {facts.memory_free / GB:.1f} GiB free; end other '
                     'programs, or raise the limit of the container')
    if facts.disk_free < CHECKPOINTS:
        found.append(f'disk: {CHECKPOINTS / GB:.0f} GiB expected for the checkpoints of a run, '
                     f'{facts.disk_free / GB:.1f} GiB free here; make room, or lower --keep_checkpoint_max')
    if facts.temporary_free < GB:
        found.append(f'{tempfile.gettempdir()}: 1 GiB expected for this tool, {facts.temporary_free / GB:.1f} GiB free;'
                     ' set TMPDIR to another folder')
    return found


def report(facts: Facts) -> list[str]:
    """The facts as lines to print."""
    built = f'CUDA {facts.cuda}, cuDNN {facts.cudnn}' if facts.cuda else 'CPUs'
    codes = f', code for {" ".join(f"sm_{a}" for a in facts.architectures)}' if facts.architectures else ''
    shm = 'none' if facts.shm_free is None else f'{facts.shm_free / GB:.2f} GiB free'
    found = [('Paddle', f'{facts.paddle or "none"}, built for {built}{codes}; Python {facts.python}, {facts.system}'),
             ('backends', ', '.join(facts.backends) or 'none'),
             ('GPUs', f'{facts.gpus} for Paddle, {_cards_text(facts.cards) or "none"} for the driver')]
    found += [(f'GPU {i}', f'{card.name}, sm_{card.capability}, {card.memory / GB:.1f} GiB ({card.used / GB:.1f} taken)'
                           f', driver {card.driver}') for i, card in enumerate(facts.cards)]
    found += [('processor', f'{facts.processor}, {facts.cores} core(s)'
               + (f', OMP_NUM_THREADS={facts.omp_threads}' if facts.omp_threads else '')),
              ('memory', f'{facts.memory_free / GB:.1f} of {facts.memory / GB:.1f} GiB free; /dev/shm {shm}; disk '
                         f'{facts.disk_free / GB:.1f} GiB free; {facts.open_files} open files')]
    return [f'{name:10} {text}' for name, text in found]


def _cards_text(cards: list[Card]) -> str:
    names = [card.name for card in cards]
    return ', '.join(f'{names.count(name)} x {name}' for name in dict.fromkeys(names))


def _cards() -> list[Card]:
    """What nvidia-smi shows; old drivers do not know compute_cap."""
    for query in ('name,memory.total,memory.used,driver_version,compute_cap',
                  'name,memory.total,memory.used,driver_version'):
        try:
            done = subprocess.run(['nvidia-smi', f'--query-gpu={query}', '--format=csv,noheader,nounits'],
                                  capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return []
        if done.returncode == 0:
            return parse_cards(done.stdout)
    return []


def parse_cards(text: str) -> list[Card]:
    """Cards from the lines of nvidia-smi; what is no number ('[N/A]') is 0."""
    def number(value: str) -> int:
        value = value.replace('.', '')
        return int(value) if value.isdigit() else 0

    cards = []
    for values in ([value.strip() for value in line.split(',')] for line in text.splitlines()):
        if len(values) >= 4:
            cards.append(Card(values[0], number(values[1]) * MB, number(values[2]) * MB, driver=values[3],
                              capability=number(values[4]) if len(values) > 4 else 0))
    return cards


def _memory() -> tuple[int, int]:
    """(all, free) bytes, within the limit of a container."""
    import psutil
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    try:
        limit = int(Path('/sys/fs/cgroup/memory.max').read_text())
        taken = int(Path('/sys/fs/cgroup/memory.current').read_text())
        return min(total, limit), min(free, limit - taken)
    except (OSError, ValueError):
        return total, free


def _processor() -> str:
    try:
        for text in Path('/proc/cpuinfo').read_text().splitlines():
            if text.startswith('model name'):
                return text.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or 'unknown processor'
