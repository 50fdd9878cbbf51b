"""Which tar files a split consists of, and what is written beside them."""

import json
import re
from pathlib import Path
from typing import Any

from impact_lightning.types import UserError


def shard_files(root: Path, split: str) -> list[Path]:
    """Return the tar files of a split: listed in `_info.json`, a pattern, a folder, or files that begin with its name.

    Args:
        root: The directory of the shards.
        split: `train`, a folder; `train-{0000..0123}.tar` or `train-*.tar`, a pattern; or the name before the dash.
    """
    listed = split_info(root, split)
    if listed:
        return [root / name for name in listed["filenames"]]
    if ".tar" in split:
        return [path for name in expand(split) for path in sorted(root.glob(name))]
    if (root / split).is_dir():
        return sorted((root / split).glob("*.tar"))
    return sorted(root.glob(f"{split}.tar")) or sorted(root.glob(f"{split}-*.tar"))


def split_info(root: Path, split: str) -> dict[str, Any]:
    """Return what `_info.json` says of a split, as timm and webdataset write it, or nothing."""
    path = root / "_info.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())["splits"].get(split, {})
        if found and len(found["filenames"]) != len(found["shard_lengths"]):
            raise ValueError("as many shard_lengths as filenames are needed")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be understood ({error}); mend or remove it") from error
    return found  # type: ignore[no-any-return]


def numbered_classes(folders: set[Path], n_classes: int) -> list[str]:
    """Return the lines of `classnames.txt` beside the shards, or the numbers of the classes where there is none."""
    for path in sorted(folder / "classnames.txt" for folder in folders):
        if path.is_file():
            names = path.read_text().splitlines()
            if len(names) < n_classes:
                raise UserError(f"{path}: {len(names)} names, but the labels go up to {n_classes - 1}")
            return names
    return [str(label) for label in range(n_classes)]


def expand(pattern: str) -> list[str]:
    """Expand the first range in braces, then the others.

    Example:
        >>> expand("val-{08..10}.tar")
        ['val-08.tar', 'val-09.tar', 'val-10.tar']
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [name for number in numbers for name in expand(pattern[: found.start()] + number + pattern[found.end() :])]
