"""A toy data set as the four archives that the real one is downloaded in."""
import zipfile
from pathlib import Path

from tools.cityscapes.archives import AUTO, DESCRIPTION, EXTRA, FINE, IMAGES, LEFTOVER

_DATE = (2016, 2, 17, 0, 0, 0)  # one for all members: the same pictures give the same bytes
_TEXTS = {'README': 'Drawn streets in the layout of Cityscapes.\n', 'license.txt': 'The drawings are free.\n'}
_REFINED = 'refinement_final'


def write_zips(tree, out):
    """Writes the archives into folder `out`, from the folder `tree` of tools/make_toy_cityscapes.py.

    As in the official ones there is more in them than is needed: a README and a license, colours and instances beside
    the fine labels, and one auto-label twice, the second time in a folder tmp.
    """
    tree, out = Path(tree), Path(out)
    _write(out / IMAGES.name, tree, 'leftImg8bit', {**_TEXTS, DESCRIPTION: (tree / DESCRIPTION).read_text()})
    _write(out / FINE.name, tree, 'gtFine', _TEXTS)
    _write(out / EXTRA.name, tree / 'leftImg8bit_trainextra', 'leftImg8bit', _TEXTS)
    first = next(iter(_files(tree, _REFINED)), None)
    more = {f'{_REFINED}/train_extra/{LEFTOVER}/{first.name}': first.read_bytes()} if first else {}
    _write(out / AUTO.name, tree, _REFINED, more)


def _files(base, folder):
    return sorted(path for path in (base / folder).rglob('*') if path.is_file())


def _write(target, base, folder, more):
    """more: {name: contents} of the members beside the files of base/folder."""
    files = _files(base, folder)
    folders = {parent for path in files for parent in path.relative_to(base).parents} - {Path('.')}
    members = {f'{path.as_posix()}/': b'' for path in sorted(folders)}
    members.update(more)
    with zipfile.ZipFile(target, 'w') as archive:
        for name, data in members.items():
            _add(archive, name, data)
        for path in files:
            _add(archive, path.relative_to(base).as_posix(), path.read_bytes())


def _add(archive, name, data):
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix, on every system
    info.external_attr = (0o40755 << 16 | 0x10) if name.endswith('/') else 0o100644 << 16
    archive.writestr(info, data)
