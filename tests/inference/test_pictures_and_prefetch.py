"""Writing, reading ahead, finding images, colours."""
import os
import threading
import time

import numpy as np
import pytest

from common.atomic_io import write_atomically
from datasets.labels import CITYSCAPES
from inference import pictures
from inference.prefetch import prefetch


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    write_atomically(path, b'old')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='No space left'):
        write_atomically(path, b'new')
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('mask', [0o022, 0o027, 0o077])
def test_written_files_have_the_usual_permissions(tmp_path, monkeypatch, mask):
    """And the umask, which belongs to all threads of the process, is not touched."""
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, 'umask', lambda _: pytest.fail('another thread may write a file now'))
            write_atomically(tmp_path / 'sub' / 'a', b'x')
        (tmp_path / 'b').write_bytes(b'x')
    finally:
        os.umask(before)
    assert (tmp_path / 'sub' / 'a').stat().st_mode == (tmp_path / 'b').stat().st_mode


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_prefetch_keeps_the_order_and_hands_over_errors(workers):
    def half(n):
        time.sleep(0.01 if n == 2 else 0)
        if n % 2:
            raise ValueError(f'{n} is odd')
        return n // 2

    found = [(item, result, str(error)) for item, result, error in prefetch(half, [2, 3, 4], workers)]
    assert found == [(2, 1, 'None'), (3, None, '3 is odd'), (4, 2, 'None')]


def test_prefetch_does_not_run_away():
    started = []
    lock = threading.Lock()

    def note(n):
        with lock:
            started.append(n)

    stream = prefetch(note, range(100), 2)
    next(stream)
    time.sleep(0.1)
    assert len(started) <= 3
    stream.close()


def test_images_of_a_folder_a_list_and_one_file(tmp_path):
    for name in ('b.png', 'sub/a.JPG', 'sub/a.png', 'notes.md', 'out/b.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    found = pictures.find_inputs(tmp_path, exclude=[tmp_path / 'out'])
    assert [(image.relative_to(tmp_path).as_posix(), str(out)) for image, out in found] == [
        ('b.png', 'b'), ('sub/a.JPG', 'sub/a.JPG'), ('sub/a.png', 'sub/a.png')]
    (tmp_path / 'list.txt').write_text('b.png\n\nsub/a.JPG\n')
    found = pictures.find_inputs(tmp_path / 'list.txt')
    assert [(image.relative_to(tmp_path).as_posix(), str(out)) for image, out in found] == [
        ('b.png', 'b'), ('sub/a.JPG', 'sub/a')]
    assert [str(out) for _, out in pictures.find_inputs(tmp_path / 'b.png')] == ['b']


@pytest.mark.parametrize('custom', [[1, 2, 3], [0] * 56 + [256], [-1] + [0] * 56])
def test_custom_colors_that_do_not_fit(custom):
    with pytest.raises(ValueError, match='--custom_color: expected 57 values of 0-255'):
        pictures.color_table(CITYSCAPES, custom)


def test_void_is_black_in_the_palette():
    table = pictures.color_table(CITYSCAPES)
    assert table[255].tolist() == [0, 0, 0] and table[11].tolist() == [220, 20, 60]
    assert table.shape == (256, 3) and table.dtype == np.uint8


def test_a_picture_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(pictures, 'write_prediction', full)
    with pytest.raises(OSError, match='No space left'), pictures.Writer(tmp_path, CITYSCAPES.color_table()) as writer:
        writer.write('a', None, None)


def test_writing_does_not_run_ahead_of_the_disk(tmp_path, monkeypatch):
    """At most two images wait: memory does not grow with a slow disk."""
    finished, go = [], threading.Event()

    def slow(_, name, *__):
        go.wait(5)
        finished.append(name)

    monkeypatch.setattr(pictures, 'write_prediction', slow)
    with pictures.Writer(tmp_path, CITYSCAPES.color_table()) as writer:
        for i in range(2):
            writer.write(i, None, None)
        assert finished == []
        threading.Timer(0.1, go.set).start()
        writer.write(2, None, None)
        assert finished[:1] == [0]
    assert finished == [0, 1, 2]
