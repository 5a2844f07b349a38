"""Weights of several ONNX graphs in one file, each array once."""
import hashlib
from pathlib import Path
from types import TracebackType

import onnx

SMALLEST = 1 << 10  # bytes; smaller arrays stay in the graph
ALIGNMENT = 1 << 12  # of a page: engines map the file into memory


class SharedWeights:
    """A file beside the graphs; what `move` has taken out of a graph is read from there by every engine.

    ONNX calls it external data (onnx.proto, TensorProto.external_data). Use it in a `with`.
    """
    NAME = 'weights.bin'

    def __init__(self, folder: Path) -> None:
        self._file = (folder / self.NAME).open('wb')
        self._places: dict[bytes, int] = {}

    def __enter__(self) -> 'SharedWeights':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()

    def move(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """The graph without its large arrays, changed in place."""
        for array in graph.graph.initializer:
            data = array.raw_data
            if len(data) < SMALLEST:
                continue
            digest = hashlib.sha256(data).digest()
            if digest not in self._places:
                self._file.write(bytes(-self._file.tell() % ALIGNMENT))
                self._places[digest] = self._file.tell()
                self._file.write(data)
            array.ClearField('raw_data')
            array.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (('location', self.NAME), ('offset', self._places[digest]), ('length', len(data))):
                array.external_data.add(key=key, value=str(value))
        return graph
