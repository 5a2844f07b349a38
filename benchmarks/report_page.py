"""How long a report's page takes to open, and what an image of 1024x2048 weighs in it.

    python -m benchmarks.report_page [--images 500] [--repeat 5]

Opens the page of `--images` drawn streets in a headless Chromium, from a file and without a cache, and that of 5
images for comparison. Times from the navigation: `text` first contentful paint; `gallery` the cards are in the document
and can be sorted; `charts` those of the first screen are drawn; and `pictures`, from a jump to the gallery, its
thumbnails are decoded. `CPU` is the time that all processes of the browser compute until the charts are drawn: it does
not depend on what else the machine does. The last column is the ratio to the 2 s that a page may take.
"""
import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

from tests.browser import browse
from tests.made_report import make

LIMIT = 2.0  # seconds
STEPS = ('text', 'gallery', 'charts', 'CPU', 'pictures')
THUMBS = '''(() => { const inside = [...document.querySelectorAll(".gallery img")].filter(i =>
  i.getBoundingClientRect().top < innerHeight); return inside.length && inside.every(i => i.complete && i.naturalWidth)
  })()'''


def opening(path: Path, repeat: int) -> dict[str, float]:
    """Median seconds of each step."""
    times = defaultdict(list)
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as profile, browse(profile) as page:
            page.size(1280, 900)
            start, before = time.perf_counter(), computed(page.pid)
            page.open(path)
            page.wait('document.querySelector("#chart-iou[data-drawn] .main-svg") !== null')
            times['charts'].append(time.perf_counter() - start)
            times['CPU'].append(computed(page.pid) - before)
            times['gallery'].append(page.run('performance.getEntriesByType("navigation")[0].domInteractive') / 1000)
            times['text'].append(page.run('performance.getEntriesByName("first-contentful-paint")[0].startTime') / 1000)
            start = time.perf_counter()
            page.run('document.getElementById("images").scrollIntoView({behavior: "instant"})')
            page.wait(THUMBS)
            times['pictures'].append(time.perf_counter() - start)
            assert not page.errors, page.errors
    return {step: statistics.median(times[step]) for step in STEPS}


def computed(pid: int) -> float:
    """Seconds of the processor that a process and its children have used."""
    root = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:2]) for process in [root, *root.children(recursive=True)])


def weight(folder: Path, count: int) -> None:
    files: dict[str, list[int]] = defaultdict(list)
    for path in folder.rglob('pictures/*/*'):
        files[path.name].append(path.stat().st_size)
    print(f'\nan image of 1024x2048, mean of {count}, in kB')
    for name, sizes in sorted(files.items()):
        print(f'{name:22}{statistics.mean(sizes) / 1000:8.1f}')
    print(f'{"all":22}{sum(map(sum, files.values())) / count / 1000:8.1f}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=500)
    parser.add_argument('--repeat', type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[int, Any] = {}
        for count in (5, args.images):
            index, _ = make(Path(folder) / str(count), count, (256, 512), drawn=5)
            found[count] = opening(index, args.repeat)
            print(f'{count} images: index.html {index.stat().st_size / 1000:.0f} kB, plotly.min.js '
                  f'{index.with_name("plotly.min.js").stat().st_size / 1000:.0f} kB')
        print(f'\n{"step":10}{"5 images":>12}{f"{args.images} images":>12}{"ratio":>8}{"of 2 s":>8}')
        for step in STEPS:
            few, many = found[5][step], found[args.images][step]
            print(f'{step:10}{few:10.2f} s{many:10.2f} s{many / few:8.2f}{many / LIMIT:8.2f}')
        make(Path(folder) / 'large', 4, (1024, 2048))
        weight(Path(folder) / 'large', 4)


if __name__ == '__main__':
    main()
