"""WebDataset shards: tar files in which `key.jpg` and `key.cls` are one sample."""

import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from impact_lightning.data.shard_files import numbered_classes, shard_files, split_info
from impact_lightning.data.source import EXTENSIONS, Encoded
from impact_lightning.data.streams import Read, Shards
from impact_lightning.data.tars import read_label, sample_key
from impact_lightning.types import UserError

Sample = dict[str, tarfile.TarInfo]  # by extension


class WebDatasets:
    """A directory of shards.

    Args:
        root: The directory.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"data.root {root} is not a directory; give the one that holds the shards")

    def has(self, split: str) -> bool:
        """Return whether there are shards of that name."""
        return bool(shard_files(self.root, split))

    def open(self, split: str) -> "WebDatasetSource":
        """Return the shards of a split."""
        lengths = split_info(self.root, split).get("shard_lengths")
        return WebDatasetSource(shard_files(self.root, split), None if lengths is None else tuple(lengths))


class WebDatasetSource(Shards):
    """Samples as they follow each other in tar files.

    Args:
        tars: The shards.
        lengths: Samples of each; counted once from their headers if none.
    """

    def __init__(self, tars: list[Path], lengths: tuple[int, ...] | None) -> None:
        self.tars = tars
        missing = [tar for tar in tars if not tar.is_file()]
        if missing:
            raise UserError(f"{missing[0]}: no such shard; mend _info.json or the name of the split")
        folders = {tar.parent for tar in tars}
        labels: set[int] = set()
        if lengths is None or not any((folder / "classnames.txt").is_file() for folder in folders):
            counted = [self._count(shard) for shard in range(len(tars))]
            lengths = lengths or tuple(count for count, _ in counted)
            labels = set().union(*(found for _, found in counted))
        if not sum(lengths):
            raise UserError(f"{tars[0].parent}: no samples in its shards")
        super().__init__(
            names=[str(tar) for tar in tars],
            lengths=lengths,
            class_names=numbered_classes(folders, max(labels, default=-1) + 1),
            identity=repr([(tar.name, tar.stat().st_size) for tar in tars]),
        )

    def samples(self, shard: int, start: int) -> Iterator[Read]:
        """Yield what reads each sample of a tar file; samples before the start are passed by without reading them."""
        for archive, sample in islice(self._walk(shard), start, None):
            yield partial(_read, archive, sample)

    def _count(self, shard: int) -> tuple[int, set[int]]:
        labels = [read_label(archive, sample["cls"]) if "cls" in sample else 0 for archive, sample in self._walk(shard)]
        return len(labels), set(labels)

    def _walk(self, shard: int) -> Iterator[tuple[tarfile.TarFile, Sample]]:
        try:
            with tarfile.open(self.tars[shard], "r:") as archive:
                files = (info for info in archive if info.isreg())
                for _, infos in groupby(files, key=lambda info: sample_key(info.name)[0]):
                    sample = {sample_key(info.name)[1]: info for info in infos}
                    if "cls" in sample or _image(sample):  # anything else describes the shard
                        yield archive, sample
        except tarfile.TarError as error:
            raise UserError(
                f"{self.tars[shard]}: not a whole uncompressed tar file ({error}); fetch it again"
            ) from error


def _image(sample: Sample) -> tarfile.TarInfo | None:
    return next((info for extension, info in sample.items() if f".{extension}" in EXTENSIONS), None)


def _read(archive: tarfile.TarFile, sample: Sample) -> Encoded:
    image = _image(sample)
    file = None if image is None else archive.extractfile(image)
    if file is None or "cls" not in sample:
        raise OSError(f"an image and a .cls file are needed, found {sorted(sample)}")
    return Encoded(file.read(), read_label(archive, sample["cls"]))
