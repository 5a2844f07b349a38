"""What a check says, and what all checks are told; the table of the results. Does not import Paddle."""
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PASSED, FAILED, NOT_RUN = 'passed', 'FAILED', 'not run'
GB = 1 << 30
SETTINGS = 'settings.json'


@dataclass
class Row:
    """One result. name: what was checked. expected, found: in a few words. reason: why it failed or was not run.

    seconds: of what was measured, where the time is of interest; peak_gb: most memory, of the GPU or of the process, in
    GiB. data: numbers for the JSON and for the last line.
    """
    name: str
    expected: str = ''
    found: str = ''
    status: str = PASSED
    reason: str = ''
    seconds: float | None = None
    peak_gb: float | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Settings:
    """device: 'cpu' or 'gpu'. network: 'recipe' or 'toy'. size: (H, W). gpus: how many are visible. folder: for files
    that checks leave for each other, removed at the end. omp_threads: OMP_NUM_THREADS as the user has it."""
    device: str = 'cpu'
    network: str = 'toy'
    size: tuple[int, int] = (128, 256)
    seed: int = 0
    quick: bool = False
    gpus: int = 0
    folder: str = ''
    omp_threads: str | None = None

    @property
    def processes(self) -> int:
        """How many the launcher starts."""
        return self.gpus if self.device == 'gpu' else 2

    @property
    def small(self) -> tuple[int, int]:
        """(H, W) for what also runs on the CPU of a machine with a GPU."""
        return min(self.size[0], 256), min(self.size[1], 512)

    def save(self) -> None:
        (Path(self.folder) / SETTINGS).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: str | Path) -> 'Settings':
        values = json.loads((Path(folder) / SETTINGS).read_text())
        return cls(**{**values, 'size': tuple(values['size'])})


def judged(name: str, passed: bool, expected: str, found: str, **more: Any) -> Row:
    """A Row that passed or failed; what was found is then its reason."""
    return Row(name, expected, found, PASSED if passed else FAILED, **more)


def one_line(error: BaseException | str) -> str:
    """An error as one short line. Of Paddle's reports, which have many lines, the one that tells."""
    text = str(error) if not isinstance(error, BaseException) else str(error) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip(' -=\t')]
    telling = [line for line in lines if 'rror:' in line or 'rror)' in line or 'out of memory' in line.lower()]
    line = (telling or lines or ['no message'])[-1]
    if isinstance(error, BaseException) and not line.startswith(type(error).__name__):
        line = f'{type(error).__name__}: {line}'
    return line if len(line) <= 300 else f'{line[:297]}...'


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error says that a card, or the machine, has no room left."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ('out of memory', 'resourceexhausted', 'cannot allocate memory'))


def append(path: Path, row: Row) -> None:
    """Add a row to a file of rows, whole as soon as it is there."""
    with open(path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(asdict(row)) + '\n')


def read(path: Path) -> list[Row]:
    """The rows of a file; of one that is not there, none. A last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else ():
        try:
            rows.append(Row(**json.loads(line)))
        except ValueError:
            break
    return rows


HEAD = ('check', 'expected', 'found', 's', 'peak GiB', 'result')
WIDTHS = (46, 29, 32, 8, 8, 8)
NUMBERS = (3, 4)


def line(cells: Sequence[str]) -> str:
    """A line of the table; numbers to the right."""
    return '  '.join(f'{cell:>{width}}' if i in NUMBERS else f'{cell:{width}}'
                     for i, (cell, width) in enumerate(zip(cells, WIDTHS))).rstrip()


def lines(rows: Iterable[Row]) -> Iterable[str]:
    """The table's lines, without its head. The reason of a failure is a line of its own, indented; that of a check that
    was not run stands in its place."""
    for row in rows:
        numbers = ['' if x is None else f'{x:.{digits}f}' for x, digits in ((row.seconds, 3), (row.peak_gb, 2))]
        if row.status == NOT_RUN:
            yield f'{row.name:{WIDTHS[0]}}  not run: {row.reason}'
            continue
        yield line((row.name, row.expected, row.found, *numbers, row.status))
        if row.reason:
            yield f'    {row.reason}'
