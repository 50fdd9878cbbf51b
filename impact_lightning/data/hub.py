"""Hugging Face data sets that are streamed: nothing is prepared or stored before the first image."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from impact_lightning.data.arrow import columns, import_datasets, stored_bytes
from impact_lightning.data.source import Encoded
from impact_lightning.data.streams import Read, Shards
from impact_lightning.types import UserError

READ_AHEAD = 32  # samples taken from the stream at a time


class HubStreams:
    """A data set that `datasets` streams.

    Args:
        root: A name on the Hub, or a directory of data files.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            self.splits: list[str] = import_datasets().get_dataset_split_names(root)
        except (OSError, ValueError) as error:
            raise UserError(f"data.root {root} is no data set that `datasets` can stream: {error}") from error

    def has(self, split: str) -> bool:
        """Return whether there is a split of that name."""
        return split in self.splits

    def open(self, split: str) -> "HubStream":
        """Return the stream of a split."""
        return HubStream(self.root, split)


class HubStream(Shards):
    """One split; its shards are the data files.

    Args:
        root: A name on the Hub, or a directory of data files.
        split: Name of the split.
    """

    def __init__(self, root: str, split: str) -> None:
        datasets = import_datasets()
        stream = datasets.load_dataset(root, split=split, streaming=True)
        self.image, self.label = columns(stream.features, f"{root}[{split}]")
        self.stream = stream.cast_column(self.image, datasets.Image(decode=False)).select_columns(
            [self.image, self.label]
        )
        # parquet stores column by column: counting reads the labels alone
        only = {"columns": [self.label]} if stream.info.builder_name == "parquet" else {}
        labels = datasets.load_dataset(root, split=split, streaming=True, **only).select_columns([self.label])
        by_shard = [_labels(labels, shard) for shard in range(labels.num_shards)]
        if not any(by_shard):
            raise UserError(f"{root}[{split}]: no images")
        super().__init__(
            names=[f"{root}[{split}] shard {shard}" for shard in range(len(by_shard))],
            lengths=tuple(map(len, by_shard)),
            class_names=list(stream.features[self.label].names),
            identity=repr(by_shard),
        )

    def samples(self, shard: int, start: int) -> Iterator[Read]:
        """Yield what reads each sample of a data file."""
        only = self.stream.shard(num_shards=len(self.lengths), index=shard).skip(start)
        # not iter(only): inside a worker that would deal the shards to workers once more
        for samples in only.iter(batch_size=READ_AHEAD):
            for image, label in zip(samples[self.image], samples[self.label], strict=True):
                yield partial(_read, image, label)


def _labels(stream: Any, shard: int) -> list[int]:
    only = stream.shard(num_shards=stream.num_shards, index=shard)
    return [label for samples in only.iter(batch_size=1024) for labels in samples.values() for label in labels]


def _read(image: dict[str, Any], label: int) -> Encoded:
    return Encoded(stored_bytes(image), label)
