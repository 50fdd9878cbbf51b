"""A unit of work: one command of this program, what it reads from other units, and what it is run for."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

Verb = Literal["fit", "test", "prune", "extract"]
PLACE = re.compile(r"\$\{([^}]+)\}")  # ${dense/fit}/checkpoints/best.ckpt is a file in the folder of that unit


@dataclass(frozen=True)
class Work:
    """One command.

    Args:
        name: Its name, such as `dense/fit`.
        verb: The command.
        config: Its configuration; files of other units as `${name of the unit}/file`.
        models: The models that it makes or reads.
        level: The level that it serves; empty where it makes or tests models.
        checkpoint: The checkpoint that a test reads, as in `config`.
    """

    name: str
    verb: Verb
    config: dict[str, Any]
    models: tuple[str, ...]
    level: str = ""
    checkpoint: str | None = None
    after: tuple[str, ...] = field(init=False)  # the units that it reads from

    def __post_init__(self) -> None:
        """Find the units that the configuration names."""
        object.__setattr__(self, "config", plain(self.config))
        read = [name for text in texts([self.config, self.checkpoint]) for name in PLACE.findall(text)]
        object.__setattr__(self, "after", tuple(dict.fromkeys(read)))


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a configuration."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


def placed(value: Any, place: Callable[[str], str]) -> Any:
    """Return a configuration with `place(unit)` for every `${unit}`."""
    if isinstance(value, str):
        return PLACE.sub(lambda match: place(match[1]), value)
    if isinstance(value, dict):
        return {key: placed(item, place) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [placed(item, place) for item in value]
    return value


def plain(value: Any) -> Any:
    """Return options as a configuration file holds them: the parser makes namespaces of classes that are named."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def merged(base: Any, changes: Any) -> Any:
    """Return a configuration with changes: mappings are merged, anything else is replaced."""
    base, changes = plain(base), plain(changes)
    if isinstance(base, dict) and isinstance(changes, dict):
        both = {key: merged(base[key], value) if key in base else value for key, value in changes.items()}
        return {**base, **both}
    return changes
