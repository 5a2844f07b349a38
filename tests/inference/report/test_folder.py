"""Who may write into the folder of a report."""
import pytest

from common.errors import FileError
from inference.report import folder


def test_an_earlier_report_is_replaced_and_nothing_else(tmp_path):
    root = tmp_path / 'new' / 'report'
    folder.check(root)
    (root / 'pictures/00000_a').mkdir(parents=True)
    assert not (root / 'index.html').exists()
    index = folder.finish(root, '<p>')
    assert index.read_text() == '<p>' and (root / 'plotly.min.js').stat().st_size > 1_000_000
    (root / 'mine.txt').write_text('mine')
    folder.check(root)
    assert index.exists() and (root / 'pictures/00000_a').is_dir(), 'nothing is lost before the work starts'
    folder.clear(root, keep=True)
    assert not index.exists() and (root / 'pictures/00000_a').is_dir(), 'an interrupted report goes on'
    folder.clear(root)
    assert not (root / 'pictures').exists() and (root / 'mine.txt').read_text() == 'mine'


def test_a_foreign_folder_stays_as_it_is(tmp_path):
    for name in ('photos', 'index.html', 'zebra'):
        (tmp_path / name).write_text('mine')
    with pytest.raises(FileError, match=r'^--report [^\n]*: expected a new or empty folder or an earlier report, found '
                                        r'index.html and 2 more; choose another folder$'):
        folder.check(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['index.html', 'photos', 'zebra']
    assert (tmp_path / 'index.html').read_text() == 'mine'


def test_no_folder_can_be_there(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('mine')
    for path, found in ((tmp_path / 'file', 'Not a directory'), (tmp_path / 'file' / 'below', 'Not a directory')):
        with pytest.raises(FileError, match=rf'^--report [^\n]*{path.name}: expected a folder that can be written, '
                                            f'found "{found}"; choose another one or change its permission$'):
            folder.check(path)

    def refused(*_):  # what a read-only folder says to everyone but root
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(folder, 'write_atomically', refused)
    with pytest.raises(FileError, match='found "Permission denied"'):
        folder.check(tmp_path / 'other')
