"""The folder of a report: who may write into it, and in which order."""
import os
import shutil
from pathlib import Path

from common.atomic_io import write_atomically
from common.errors import FileError
from inference.report import gallery, look

INDEX, MARK = 'index.html', 'report.txt'
ABOUT = 'A report of val.py or predict.py: open index.html in a browser. The folder can be moved, packed and sent.\n'


def prepare(folder: str | os.PathLike, keep: bool = False) -> None:
    """Make the folder, or empty an earlier report in it; before the work starts.

    keep: go on with the pictures of an interrupted report. FileError, with one line, for a folder that holds anything
    else or that cannot be written. From here to `finish` there is no index.html.
    """
    path = Path(folder)
    try:
        others = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
        if others and not (path / MARK).is_file():
            more = f' and {len(others) - 1} more' if len(others) > 1 else ''
            raise FileError(f'--report {folder}: expected a new or empty folder or an earlier report, found '
                            f'{others[0]}{more}; choose another folder')
        write_atomically(path / MARK, ABOUT.encode())
        (path / INDEX).unlink(missing_ok=True)
        if not keep and (path / gallery.FOLDER).exists():
            shutil.rmtree(path / gallery.FOLDER)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f'--report {folder}: expected a folder that can be written, found "{error.strerror}"; choose '
                        'another one or change its permission') from error


def finish(folder: str | os.PathLike, html: str) -> Path:
    """Write Plotly's script and, last, index.html, whose path is returned."""
    write_atomically(Path(folder) / look.PLOTLY, look.plotly().encode())
    write_atomically(Path(folder) / INDEX, html.encode())
    return Path(folder) / INDEX
