"""What decides how this machine computes: its processor, and the instructions that libraries choose kernels by."""
import platform
from pathlib import Path
from typing import Any


def processor() -> dict[str, Any]:
    """Model name, and the vector instructions by which the mathematical libraries choose their kernels."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return {'processor': platform.processor() or platform.machine(), 'instructions': []}
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in lines)}
    flags = fields.get('flags', fields.get('Features', '')).split()
    name = fields.get('model name', platform.machine())
    family = ' '.join(f'{key} {fields[key]}' for key in ('cpu family', 'model') if key in fields)
    return {'processor': f'{name} ({family})' if family else name,
            'instructions': sorted({flag for flag in flags if flag.startswith(('avx', 'amx', 'fma', 'sve', 'asimd'))})}
