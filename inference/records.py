"""What an evaluation keeps of each image: its integers, from which every score is computed."""
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference import metrics
from inference.scores.base import dense, sparse

CONFUSION = 'confusion'
ENDING = '_leftImg8bit'  # of the stems of Cityscapes' images


@dataclass(frozen=True)
class Record:
    """tables: int64 (rows, columns) of every score by its key, and the confusion matrix as rows [i, j, pixels]."""
    index: int
    name: str
    tables: Mapping[str, np.ndarray]

    def matrix(self, num_classes: int) -> np.ndarray:
        """The confusion matrix, int64 (K, K): pixels of class i (row, ground truth) that were predicted as j."""
        return dense(self.tables[CONFUSION], (num_classes, num_classes))

    def scores(self, num_classes: int) -> dict[str, Any]:
        """{'index', 'name', 'iou': float64 (K,), NaN where a class is absent, 'miou', 'accuracy', 'matrix'}."""
        matrix = self.matrix(num_classes)
        found = metrics.scores(matrix)
        return {'index': self.index, 'name': self.name, **{key: found[key] for key in ('iou', 'miou', 'accuracy')},
                'matrix': matrix}

    def plain(self) -> dict[str, Any]:
        """For JSON; `from_plain` is the inverse."""
        return {'index': self.index, 'name': self.name, **{key: table.tolist() for key, table in self.tables.items()}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> 'Record':
        tables = {key: np.array(value, np.int64) for key, value in plain.items() if key not in ('index', 'name')}
        return cls(int(plain['index']), str(plain['name']), tables)


def of_matrix(index: int, name: str, matrix: np.ndarray, tables: Mapping[str, np.ndarray] | None = None) -> Record:
    return Record(index, name, {CONFUSION: sparse(matrix), **(tables or {})})


def image_files(dataset: Any, index: int) -> tuple[str, str]:
    """(image, label) of a sample for error messages: paths, or the index for a dataset without a file_list."""
    files = getattr(dataset, 'file_list', None)
    if files is None:
        return f'image {index}', f'label {index}'
    return str(files[index][0]), str(files[index][1])


def image_names(dataset: Any) -> list[str]:
    """A name for every image: its path below the folder that holds all of them, without suffix and _leftImg8bit.

    They do not depend on where the dataset lies. The index where the dataset has no file_list.
    """
    files = getattr(dataset, 'file_list', None)
    if files is None:
        return [str(index) for index in range(len(dataset))]
    paths = [Path(os.path.abspath(entry[0])) for entry in files]
    root = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(root).with_suffix('').as_posix().removesuffix(ENDING) for path in paths]
    return names if len(set(names)) == len(names) else [path.relative_to(root).as_posix() for path in paths]
