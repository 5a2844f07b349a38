"""Folders in error messages."""
from pathlib import Path


def describe_folder(folder: Path) -> str:
    """What is at a path, in a few words for an error message."""
    if not folder.is_dir():
        return 'a file' if folder.exists() else 'nothing'
    names = sorted(path.name for path in folder.iterdir())
    return ', '.join(names[:4]) + (', ...' if len(names) > 4 else '') if names else 'an empty folder'
