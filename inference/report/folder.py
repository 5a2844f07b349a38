"""The folder of a report: who may write into it, and in which order."""
import os
import shutil
from pathlib import Path

from common.atomic_io import write_atomically
from common.errors import FileError
from inference.report import gallery, look

INDEX, MARK = 'index.html', 'report.txt'
ABOUT = 'A report of val.py or predict.py: open index.html in a browser. The folder can be moved, packed and sent.\n'


def check(folder: str | os.PathLike) -> None:
    """Make the folder if it is not there. FileError, with one line, if it cannot be written or holds anything else.

    Changes nothing in an earlier report: to be called before the work starts.
    """
    path = Path(folder)
    try:
        others = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
        if others and not (path / MARK).is_file():
            more = f' and {len(others) - 1} more' if len(others) > 1 else ''
            raise FileError(f'--report {folder}: expected a new or empty folder or an earlier report, found '
                            f'{others[0]}{more}; choose another folder')
        write_atomically(path / MARK, ABOUT.encode())
    except FileError:
        raise
    except OSError as error:
        raise FileError(f'--report {folder}: expected a folder that can be written, found "{error.strerror}"; choose '
                        'another one or change its permission') from error


def clear(folder: str | os.PathLike, keep: bool = False) -> None:
    """Remove the page of an earlier report, and its pictures unless an interrupted one goes on (keep).

    From here to `finish` there is no index.html.
    """
    (Path(folder) / INDEX).unlink(missing_ok=True)
    if not keep and (Path(folder) / gallery.FOLDER).exists():
        shutil.rmtree(Path(folder) / gallery.FOLDER)


def finish(folder: str | os.PathLike, html: str) -> Path:
    """Write Plotly's script and, last, index.html, whose path is returned."""
    write_atomically(Path(folder) / look.PLOTLY, look.plotly().encode())
    write_atomically(Path(folder) / INDEX, html.encode())
    return Path(folder) / INDEX
