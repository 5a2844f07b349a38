"""The memory that this process has resident, as Linux counts it."""
from pathlib import Path


def resident_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MiB."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def reset_peak() -> None:
    """Have the peak begin anew at what is resident now. Raises OSError where Linux does not allow it."""
    Path('/proc/self/clear_refs').write_text('5')
