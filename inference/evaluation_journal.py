"""The records of an evaluation under way, kept beside its report so that it can be interrupted and continued.

Each process appends to a file of its own, <report>.<rank>.jsonl: a line with the settings, then one per image. A line
that a kill cut off is dropped, and its image evaluated again.
"""
import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import paddle

from common.config import Config
from common.errors import UserError
from datasets.labels import LabelSet
from inference.processes import gather
from inference.records import Record
from inference.run_settings import difference, of_prediction
from inference.scores.base import Score


def settings_of(config: Config, weights: str | os.PathLike, labels: LabelSet, names: Sequence[str],
                test_time: Mapping[str, Any], scores: Sequence[Score]) -> dict[str, Any]:
    """All that the integers of an image depend on. names: of all images. test_time: flags of prediction."""
    return {**of_prediction(config, weights, test_time=dict(test_time)),
            'classes': [labels.names, labels.ignore_index], 'number_of_images': len(names),
            'images_sha256': hashlib.sha256('\n'.join(names).encode()).hexdigest(),
            'scores': [score.key for score in scores],
            'score_settings': {score.key: score.settings for score in scores}}


class EvaluationJournal:
    """The records of all processes that are there when it is opened, and a file for those of this process.

    report: the path without suffix of the report. settings: all that the records depend on, plain values. resume: keep
    the records of an interrupted evaluation; otherwise they are deleted. only: use those of these images; None: of all.
    Processes open it together: only when all have read does any of them write. found: {index: Record} of all processes.

    Raises UserError, with the key that differs, for records of other settings, and if another evaluation writes there.
    """

    def __init__(self, report: str | os.PathLike, settings: Mapping[str, Any], resume: bool,
                 only: Collection[int] | None = None) -> None:
        self._report = Path(report)
        self._settings = json.loads(json.dumps(settings))
        rank, world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
        self.path = self._path(rank)
        self._file: IO[bytes] = open(self.path, 'a+b')  # noqa: SIM115 (open as long as the evaluation runs)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f'{self.path}: expected no other evaluation of these weights with these flags, found one '
                            'under way; wait for it') from None
        self._written = 0
        self.found = {index: record for share in gather(self._read_all() if resume else {})
                      for index, record in share.items() if only is None or index in only}
        if not resume:
            if self._file.tell():
                logging.getLogger('val').warning('%s: begun anew; --resume would have continued the interrupted '
                                                 'evaluation', self.path)
            self._file.truncate(0)
            for path in self._paths() if rank == 0 else ():
                if int(path.name.split('.')[-2]) >= world_size:  # of an evaluation by more processes
                    path.unlink()
        self._cut()
        if self._file.tell() == 0:
            self._write(self._settings)

    def append(self, record: Record) -> None:
        self._write(record.plain())
        self._written += 1

    def delete(self) -> None:
        """When the report is written: remove the files of all processes."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def __enter__(self) -> 'EvaluationJournal':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._file.close()
        kept = len(self.found) + self._written
        if error is not None and not kept:
            self.path.unlink(missing_ok=True)
        elif error is not None:
            logging.getLogger('val').info('%s: %d images are kept; the same command with --resume continues',
                                          self.path, kept)

    def _path(self, rank: int) -> Path:
        return self._report.with_name(f'{self._report.name}.{rank}.jsonl')

    def _paths(self) -> list[Path]:
        return [path for path in sorted(self._report.parent.iterdir())
                if path.name.startswith(f'{self._report.name}.') and path.suffixes[-1:] == ['.jsonl']
                and path.name.removeprefix(f'{self._report.name}.').removesuffix('.jsonl').isdigit()]

    def _write(self, value: Mapping[str, Any]) -> None:
        # A kill of the process loses nothing of what the system has; a power cut may lose the last images.
        self._file.write(json.dumps(value).encode() + b'\n')
        self._file.flush()

    def _cut(self) -> None:
        """Remove what follows the last whole line of this process's file."""
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b'\n') + 1)
        self._file.seek(0, os.SEEK_END)

    def _read_all(self) -> dict[int, Record]:
        found: dict[int, Record] = {}
        for path in self._paths():
            head, *lines = path.read_bytes().split(b'\n')[:-1] or [b'']  # the last is empty, or cut off
            if not head:
                continue
            with self._readable(path):
                if other := difference(json.loads(head), self._settings):
                    raise UserError(f'{path}: expected records of an evaluation with the same settings, found {other}; '
                                    'use those, or leave --resume out to begin anew')
                for line in lines:
                    record = Record.from_plain(json.loads(line))
                    found[record.index] = record
        return found

    @contextlib.contextmanager
    def _readable(self, path: Path) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'{path}: expected a record of an image on each line, found something else ({error}); '
                            'leave --resume out to begin anew') from error
