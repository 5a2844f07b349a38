"""A toy dataset as the four archives in which the real one is downloaded."""
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tools.cityscapes.archives import AUTO, DESCRIPTION, EXTRA, FINE, IMAGES, LEFTOVER

_DATE = (2016, 2, 17, 0, 0, 0)  # the same for all members, so that the same pictures give the same bytes
_TEXTS = {'README': 'Drawn streets in the layout of Cityscapes.\n', 'license.txt': 'The drawings are free.\n'}
_REFINED = 'refinement_final'


def write_zips(tree: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write the archives into folder `out`, from the folder `tree` of tools/make_toy_cityscapes.py.

    Like the official ones they contain more than is needed: a README and a license, colours and instances beside the
    fine labels, and one of the auto-labels twice, the second time in a folder tmp.
    """
    tree, out = Path(tree), Path(out)
    _write(out / IMAGES.name, tree, 'leftImg8bit', {**_TEXTS, DESCRIPTION: (tree / DESCRIPTION).read_text()})
    _write(out / FINE.name, tree, 'gtFine', _TEXTS)
    _write(out / EXTRA.name, tree / 'leftImg8bit_trainextra', 'leftImg8bit', _TEXTS)
    first = next(iter(_files(tree, _REFINED)), None)
    more = {f'{_REFINED}/train_extra/{LEFTOVER}/{first.name}': first.read_bytes()} if first else {}
    _write(out / AUTO.name, tree, _REFINED, more)


def _files(base: Path, folder: str) -> list[Path]:
    return sorted(path for path in (base / folder).rglob('*') if path.is_file())


def _write(target: Path, base: Path, folder: str, more: Mapping[str, str | bytes]) -> None:
    """Write an archive of base/folder. more: {name: content} of additional members."""
    files = _files(base, folder)
    folders = {parent for path in files for parent in path.relative_to(base).parents} - {Path('.')}
    members = {f'{path.as_posix()}/': b'' for path in sorted(folders)}
    members.update({name: data.encode() if isinstance(data, str) else data for name, data in more.items()})
    with zipfile.ZipFile(target, 'w') as archive:
        for name, data in members.items():
            _add(archive, name, data)
        for path in files:
            _add(archive, path.relative_to(base).as_posix(), path.read_bytes())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix, on every system
    info.external_attr = (0o40755 << 16 | 0x10) if name.endswith('/') else 0o100644 << 16
    archive.writestr(info, data)
