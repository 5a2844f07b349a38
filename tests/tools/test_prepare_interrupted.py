"""What can come between archives and tree: kills, Ctrl-C, a second run, full disks, what is in the way."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from common import cli
from common.atomic_io import FolderLock
from common.errors import FileError
from tests.conftest import PATIENCE
from tests.tools.prepared import check_tree, errors, files, run
from tools.cityscapes import unpacking
from tools.prepare_cityscapes import main
from tools.shared.workers import DiskFull, results_of

DRIVER = str(Path(__file__).with_name('kill_prepare.py'))
pytestmark = pytest.mark.usefixtures('verified')


def test_twenty_kills_end_in_the_same_tree(root, zips, drawn):
    """Of the whole group and of the parent alone, whose workers must not live on."""
    result = subprocess.run([sys.executable, DRIVER, 'kill', str(root), str(zips), '20', '1'], capture_output=True,
                            text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    status, counts, temporary = map(int, result.stdout.splitlines()[-1].split())
    assert status == 0
    assert counts >= 5 and temporary >= 3, 'the kills must have hit the work'
    assert 'half-written files of an interrupted run removed' in result.stdout
    check_tree(root, drawn)


def test_interrupt(root, zips, drawn, tmp_path):
    interrupted = tmp_path / 'interrupted'
    process = subprocess.Popen([sys.executable, DRIVER, 'until', str(interrupted), '--zips', str(zips),
                                '--dataset_root', str(root), '--num_workers', '2'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # not as inherited: a
    # shell has what it starts in the background ignore Ctrl-C
    while process.poll() is None and not list(root.glob('leftImg8bit/*/*/*.png')):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    interrupted.touch()
    output = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and output[1] == 'interrupted\n'
    assert 0 < len(files(root)) < 30 and run(root, zips) == 0
    check_tree(root, drawn)


def test_two_runs_into_one_folder(root, zips):
    with FolderLock(root, '--dataset_root'), pytest.raises(
            ValueError, match=f'--dataset_root {root}: expected no other run.*, found process {os.getpid()}'):
        run(root, zips)
    assert files(root) == {}
    assert run(root, zips) == 0


def test_leftovers_are_removed_and_files_of_the_user_are_not(root, zips, drawn, capsys):
    city = root / 'gtFine/train/toyburg'
    city.mkdir(parents=True)
    for kind in ('labelIds', 'labelTrainIds', 'instanceIds'):
        (city / f'.toyburg_000000_000019_gtFine_{kind}.png.ab12_xyz').write_bytes(b'half')
    mine = [city / 'notes.txt', city / '.toyburg_000000_000019_gtFine_labelIds.png.swp', city / '.notes.abcdefgh',
            root / 'thesis.tex']
    for path in mine:
        path.write_text('mine')
    assert run(root, zips) == 0
    assert '3 half-written files of an interrupted run removed' in capsys.readouterr().out
    assert all(path.read_text() == 'mine' for path in mine)
    for path in mine:
        path.unlink()
    check_tree(root, drawn)


def test_a_file_of_another_size_is_replaced(root, zips, drawn, capsys):
    run(root, zips)
    photo, label = (next(root.glob(pattern)) for pattern in ('leftImg8bit/val/*/*.png', 'gtFine/val/*/*labelIds.png'))
    auto = next(root.glob('convert_autolabelled/*/*.png'))
    for path in (photo, label, auto):
        path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    assert run(root, zips) == 0
    check_tree(root, drawn)
    assert capsys.readouterr().out.count('; 1 of them are there with another size, as an interrupted unzip leaves') == 3


def test_links_of_the_user(root, zips, drawn, tmp_path):
    disk = tmp_path / 'disk'
    (disk / 'photos').mkdir(parents=True)
    (disk / 'tree').mkdir()
    root.parent.mkdir()
    root.symlink_to(disk / 'tree')
    (root / 'leftImg8bit').symlink_to(disk / 'photos')
    assert run(root, zips) == 0
    assert (root / 'leftImg8bit').is_symlink() and len(list(disk.glob('photos/*/*/*.png'))) == 8
    assert len(list(disk.glob('tree/leftImg8bit_trainextra/*/*/*/*.png'))) == 5
    assert run(root, zips) == 0
    (disk / 'photos').rename(disk / 'unmounted')
    with pytest.raises(FileError, match='leftImg8bit: expected a folder, found a link to .*photos, '):
        run(root, zips)


@pytest.mark.parametrize('place', ['', 'leftImg8bit', 'gtFine/train', 'convert_autolabelled',
                                   'leftImg8bit_trainextra/leftImg8bit/train_extra/zinnfeld'])
def test_a_file_where_a_folder_should_be(root, zips, place):
    path = root / place
    path.parent.mkdir(parents=True)
    path.write_text('mine')
    with pytest.raises(FileError, match=f'{path}: expected a folder, found a file; move it away'):
        run(root, zips)
    assert path.read_text() == 'mine' and list(files(root)) in ([], [place])


def test_a_folder_where_a_file_should_be(root, zips):
    path = root / 'gtFine/val/murmeltal/murmeltal_000000_000019_gtFine_labelIds.png'
    path.mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=f'{path}: expected a file or nothing, found a folder'):
        run(root, zips)
    assert files(root) == {}


def test_no_permission(root, zips, monkeypatch):
    (root / 'gtFine').mkdir(parents=True)
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path).name != 'gtFine')
    with pytest.raises(PermissionError, match='gtFine: expected a folder that may be written to.*--dataset_root'):
        run(root, zips)
    assert files(root) == {}


def test_not_enough_room(root, zips, monkeypatch):
    free = [30000]
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: namedtuple('Usage', 'free')(free[0]))
    with pytest.raises(OSError, match=r'expected 0\.\d\d MB of free disk.*found 0\.03 MB; make room'):
        run(root, zips)
    assert not root.exists()
    free[0] = 10 ** 6
    assert run(root, zips) == 0
    free[0] = 0
    assert run(root, zips) == 0  # nothing to write


@pytest.mark.parametrize('stage', ['leftImg8bit', 'convert_autolabelled'])
def test_a_full_disk_midway(root, zips, drawn, monkeypatch, capsys, stage):
    written = []
    write = unpacking.write_atomically

    def full(path, data, **flags):
        written.extend([path] * (stage in str(path)))
        if len(written) > 3:
            raise OSError(28, 'No space left on device')
        write(path, data, **flags)

    with monkeypatch.context() as patch:
        patch.setattr(unpacking, 'write_atomically', full)
        with pytest.raises(SystemExit) as stop:
            cli.run(main, ['--zips', str(zips), '--dataset_root', str(root), '--num_workers', '1'])
    assert stop.value.code == 1 and len(written) == 4
    line, = errors(capsys)
    assert re.fullmatch(f'error: .*{stage}.*: expected room for it, found none .No space left on device.; '
                        'make room and start again.*', line)
    assert run(root, zips) == 0
    check_tree(root, drawn)


def no_room(job):
    if job == 5:
        DiskFull.check(OSError(28, 'No space left on device'), 'x')
    return job


def test_a_full_disk_ends_all_workers():
    done = []
    with pytest.raises(DiskFull, match='x: expected room'):
        for result in results_of(no_room, list(range(200)), 2):
            done.append(result)
    assert done == [0, 1, 2, 3]


def test_a_killed_worker_is_told():
    with pytest.raises(OSError, match='found one killed .*smaller --num_workers'):
        list(results_of(die, list(range(8)), 2))


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)
