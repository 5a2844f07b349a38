"""Peak memory by one measure for all engines: on a GPU what the driver says is in use, on the CPU what is resident."""
import ctypes
import os
import threading
from pathlib import Path

INTERVAL = 0.002  # seconds; the engines' allocators keep what they have taken, so that nothing hides between two looks


class Memory(ctypes.Structure):
    """nvmlMemory_t."""
    _fields_ = [('total', ctypes.c_ulonglong), ('free', ctypes.c_ulonglong), ('used', ctypes.c_ulonglong)]


class Gpu:
    """The first visible GPU through NVML, the library of nvidia-smi; OSError where there is none.

    Its numbers are of all processes on the GPU: nothing else may run there.
    """

    def __init__(self) -> None:
        self._library, self._handle = ctypes.CDLL('libnvidia-ml.so.1'), ctypes.c_void_p()
        self._call('nvmlInit_v2')
        first = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')[0].strip() or '0'
        if first.isdigit():
            self._call('nvmlDeviceGetHandleByIndex_v2', ctypes.c_uint(int(first)), ctypes.byref(self._handle))
        else:
            self._call('nvmlDeviceGetHandleByUUID', first.encode(), ctypes.byref(self._handle))

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise OSError(f'{name}: status {status}')

    def name(self) -> str:
        text = ctypes.create_string_buffer(96)
        self._call('nvmlDeviceGetName', self._handle, text, ctypes.c_uint(len(text)))
        return text.value.decode()

    def used(self) -> int:
        """Bytes."""
        memory = Memory()
        self._call('nvmlDeviceGetMemoryInfo', self._handle, ctypes.byref(memory))
        return memory.used


def gpu() -> Gpu | None:
    """None without NVML."""
    try:
        return Gpu()
    except OSError:
        return None


class Peak:
    """From its making, before anything is on the GPU, until `stop`, which returns GB or None where nobody knows them.

    On a GPU: what was in use at most beyond what was in use at first, with the context and the engine's own code.
    """

    def __init__(self, cuda: bool) -> None:
        self._cuda, self._gpu = cuda, gpu() if cuda else None
        self._first = self._most = self._gpu.used() if self._gpu else 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._gpu and not self._stopped.wait(INTERVAL):
            self._most = max(self._most, self._gpu.used())

    def stop(self) -> float | None:
        self._stopped.set()
        self._thread.join()
        if self._gpu:
            return (max(self._most, self._gpu.used()) - self._first) / 2**30
        return None if self._cuda else _resident()


def _resident() -> float | None:
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM:')) / 2**20
    except (OSError, StopIteration):
        return None


def missing_driver() -> str:
    """Why CUDA cannot start, '' if it can."""
    try:
        driver, count = ctypes.CDLL('libcuda.so.1'), ctypes.c_int()
    except OSError:
        return 'no driver (libcuda.so.1)'
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f'a driver that does not start (CUDA error {status})'
    return '' if count.value else 'no GPU'
