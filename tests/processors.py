"""`make test-processors`: the tests as other machines would compute them, one run of the suite per line of RUNS.

    python tests/processors.py [NAME ...] [-- arguments of pytest]

The mathematical libraries choose their kernels by the processor; their environment variables make them choose as on
another one, and other kernels, numbers of threads and orders of tests bring other roundings and other timings. Every
setting stands in some run, several in one, because a run takes minutes; the line of a failing run says what to set to
find the one that matters. `busy` keeps every core occupied by another process meanwhile.
"""
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = {
    'one thread': ({'OMP_NUM_THREADS': '1', 'PYTHONHASHSEED': '0'}, []),
    'AVX2 laptop, two threads, reverse order': (
        {'OMP_NUM_THREADS': '2', 'MKL_CBWR': 'COMPATIBLE', 'ONEDNN_MAX_CPU_ISA': 'AVX2', 'OPENBLAS_CORETYPE': 'Haswell',
         'PYTHONHASHSEED': '1'}, ['--reverse']),
    'AVX-512 server, four threads, random order': (
        {'OMP_NUM_THREADS': '4', 'MKL_CBWR': 'AVX2', 'ONEDNN_MAX_CPU_ISA': 'AVX512_CORE', 'PYTHONHASHSEED': '2'},
        ['--random-order', '--random-order-bucket=module', '--random-order-seed=1']),
    'busy': ({'PYTHONHASHSEED': '3'}, ['--random-order', '--random-order-bucket=global', '--random-order-seed=2']),
}
BUSY = 'while True: pass'


def main(argv):
    names, arguments = (argv[:argv.index('--')], argv[argv.index('--') + 1:]) if '--' in argv else (argv, [])
    unknown = [name for name in names if name not in RUNS]
    if unknown:
        sys.exit(f'{unknown[0]}: expected a run ({", ".join(map(repr, RUNS))}), found another name')
    results = []
    for name, (environment, order) in RUNS.items():
        if names and name not in names:
            continue
        print(f'=== {name}: {" ".join(f"{key}={value}" for key, value in environment.items())} {" ".join(order)}',
              flush=True)
        occupied = os.cpu_count() if name == 'busy' else 0
        burners = [subprocess.Popen([sys.executable, '-c', BUSY]) for _ in range(occupied)]
        start = time.perf_counter()
        try:
            status = subprocess.run([sys.executable, '-m', 'pytest', '-m', 'not slow', *order, *arguments], cwd=ROOT,
                                    env={**os.environ, **environment}).returncode
        finally:
            for burner in burners:
                burner.kill()
        results.append((name, status, time.perf_counter() - start))
    for name, status, seconds in results:
        print(f'{"passed" if status == 0 else f"FAILED ({status})":12} {seconds:6.0f} s  {name}')
    return max(status for _, status, _ in results)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
