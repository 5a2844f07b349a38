"""Which mask belongs to which image in two folders, and which split each image is in."""
import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from common.errors import FileError, UserError
from inference.pictures import IMAGE_SUFFIXES
from tools.shared.folders import describe_folder

SPLITS = ('train', 'val', 'test')
MASK = '.png'
Pairs: TypeAlias = Mapping[str, tuple[Path, Path | None]]  # {name: (image, mask or None)}


# ---------------------------------------------------------------- images and masks

def pair_files(images: str | os.PathLike, masks: str | os.PathLike,
               mask_suffix: str = '') -> dict[str, tuple[Path, Path | None]]:
    """Images and masks, sorted by name: the path of the image below `images` without its suffix.

    The mask of a/b.jpg is a/b<mask_suffix>.png below `masks`. Links are followed, hidden files are ignored. One folder
    may be inside the other, or be the same if there is a mask_suffix.
    Raises UserError for folders without such files, two images with the same name, and masks without an image.
    """
    images, masks = Path(images), Path(masks)
    for flag, folder in (('--images', images), ('--masks', masks)):
        if not folder.is_dir():
            raise FileError(f'{flag} {folder}: expected a folder, found {describe_folder(folder)}; '
                                     'check the path')
    if images.resolve() == masks.resolve() and not mask_suffix:
        raise UserError(f'--masks {masks}: expected another folder than --images, or a --mask_suffix that tells masks '
                         'from images, found the same folder; correct one of them')
    suffix = mask_suffix + MASK

    def is_mask(name: str) -> bool:
        return name.lower().endswith(suffix.lower())

    found_masks = {name: paths[0] for name, paths in _find(masks, images, is_mask, len(suffix)).items()}
    found = _find(images, masks, lambda name: name.lower().endswith(IMAGE_SUFFIXES)
                  and not (mask_suffix and is_mask(name)))
    for flag, folder, what, files in (('--images', images, ' '.join(IMAGE_SUFFIXES), found),
                                      ('--masks', masks, f'*{suffix}', found_masks)):
        if not files:
            hint = ', and masks are PNG: JPEG changes their values' if flag == '--masks' else ''
            raise UserError(f'{flag} {folder}: expected files {what}, found {describe_folder(folder)}; check the path'
                             f'{hint}')
    same = [paths for paths in found.values() if len(paths) > 1]
    if same:
        raise UserError(f'--images {images}: expected one image of a name, found {same[0][0]} and {same[0][1].name}'
                         f'{_more(same)}; delete or rename one')
    lonely = sorted(found_masks.keys() - found.keys())
    if lonely:
        raise UserError(f'--masks {masks}: expected an image below {images} for every mask, found none for '
                         f'{found_masks[lonely[0]]}{_more(lonely)}; add the images or move these masks away')
    return {name: (found[name][0], found_masks.get(name)) for name in sorted(found)}


def check_masks(pairs: Pairs, splits: Mapping[str, str], masks: str | os.PathLike, mask_suffix: str) -> None:
    """Raise UserError if an image has no mask, except in split test. splits: {name: split}."""
    missing = [name for name, split in splits.items() if split != 'test' and pairs[name][1] is None]
    if missing:
        raise UserError(f'--masks {masks}: expected {missing[0]}{mask_suffix}{MASK} for the image '
                         f'{pairs[missing[0]][0]}, found none{_more(missing)}; add the masks, leave these images out '
                         'with --lists, or correct --mask_suffix')


def _find(folder: Path, other: Path, accept: Callable[[str], bool], cut: int | None = None) -> dict[str, list[Path]]:
    """{name: paths} of the files whose name `accept` accepts, without those in `other` if it is inside `folder`.

    cut: number of characters at the end of a path that are not part of the name; None: those of its suffix.
    """
    other = other.resolve()
    found: dict[str, list[Path]] = defaultdict(list)

    def walk(path: Path, above: frozenset[Path]) -> None:
        real = path.resolve()
        if real in above or (above and real == other):  # a circular link
            return
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            if entry.name.startswith('.'):
                continue
            if entry.is_dir():
                walk(Path(entry.path), above | {real})
            elif accept(entry.name):
                file = Path(entry.path)
                name = file.relative_to(folder).as_posix()
                found[_normal(name[:-(cut or len(file.suffix))])].append(file)

    walk(folder, frozenset())
    return found


def _normal(name: str) -> str:
    return unicodedata.normalize('NFC', name)  # macOS stores é as two characters, other systems as one


def _more(items: Collection) -> str:
    return f' (and {len(items) - 1} more)' if len(items) > 1 else ''


# ---------------------------------------------------------------- splits

def split_by_shares(names: Iterable[str], shares: Sequence[str], seed: int) -> dict[str, str]:
    """{name: split} at random, by shares like ['train=0.8', 'val=0.2'].

    The split of an image depends on (seed, its name, shares) alone, so adding images never moves one from train to val.
    Raises UserError for invalid shares and for a split that would be empty.
    """
    limits: dict[str, float] = {}
    total = 0.0
    for item in shares:
        split, _, text = item.partition('=')
        try:
            share = float(text)
        except ValueError:
            share = -1
        if split not in SPLITS or split in limits or not 0 < share <= 1:
            raise UserError(f'--split {item}: expected {", ".join(SPLITS)}, each at most once, and a share above 0, '
                             f'found {item}; write it like train=0.8 val=0.2')
        total += share
        limits[split] = total
    if abs(total - 1) > 1e-6:
        raise UserError(f'--split {" ".join(shares)}: expected shares that add up to 1, found {total:g}; correct them')
    splits = {}
    for name in names:
        digest = hashlib.sha256(f'{seed}/{name}'.encode('utf-8', 'surrogateescape')).digest()
        position = int.from_bytes(digest[:8], 'big') / 2**64
        splits[name] = next((split for split, limit in limits.items() if position < limit), split)
    for split in limits:
        if split not in splits.values():
            raise UserError(f'--split {" ".join(shares)}: expected at least one image in {split}, found none of '
                             f'{len(splits)}; choose another --seed, or --lists')
    return splits


def split_by_lists(pairs: Pairs, lists: Iterable[str | os.PathLike], images: str | os.PathLike) -> dict[str, str]:
    """{name: split} by list files named after their split: one image per line, its path below `images` or its name.

    The suffix may be omitted, and so may the folder if the name is unique. Raises UserError for files with other
    names, lines that do not match exactly one image, and images in two lists.
    """
    by_line: dict[str, set[str]] = defaultdict(set)
    for name, (image, _) in pairs.items():
        path = _normal(image.relative_to(images).as_posix())
        for line in {name, path, Path(name).name, Path(path).name}:
            by_line[line].add(name)
    splits: dict[str, str] = {}
    files: dict[str, Path] = {}
    for file in map(Path, lists):
        if file.stem not in SPLITS or file.stem in files:
            raise UserError(f'--lists {file}: expected files named {", ".join(f"{split}.txt" for split in SPLITS)}, '
                             f'each once, found {file.name}; rename it')
        files[file.stem] = file
        try:
            lines = file.read_text(encoding='utf-8-sig').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise FileError(f'--lists {file}: expected a text file, found "{reason}"; check the path') from None
        for number, line in enumerate(lines, 1):
            line = _normal(line.strip()).removeprefix('./')
            if not line:
                continue
            found = {line} if line in pairs else by_line.get(line, set())
            if len(found) != 1:
                raise UserError(f'{file}: line {number}: expected an image below {images}, found {line!r}, which is '
                                 f'{f"{len(found)} of them" if found else "none"}; write its path below that folder')
            name, = found
            if splits.setdefault(name, file.stem) != file.stem:
                raise UserError(f'{file}: line {number}: expected every image in one list, found {line!r} in '
                                 f'{files[splits[name]]} as well; delete one')
    for split, file in files.items():
        if split not in splits.values():
            raise UserError(f'--lists {file}: expected images, found no line; fill the list or leave it out')
    return splits
