"""Messages for people: what the configuration parser says, shortened to the key, the value, and the file's line."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from impact_lightning.types import UserError

_NOISE = (
    re.compile(r"Does not validate against any of the Union subtypes"),
    re.compile(r"Subtypes: "),
    re.compile(r"Errors:$"),
    re.compile(r"(- )?Expected a <class 'NoneType'>"),
    re.compile(r"Given value( type)?: "),
)
_CLASS = re.compile(r"<class '([\w.]+)'>")


def explain(message: str, args: Sequence[str]) -> str:
    """Return a parser's message without its noise, and with the line of the file that holds the key.

    Args:
        message: What jsonargparse says.
        args: The words of the command line.
    """
    paths = list(_config_files(args))
    for path in paths:
        if problem := _syntax_error(path):
            return problem
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = [line for line in lines if line and not any(noise.match(line) for noise in _NOISE)]
    text = " ".join(line.rstrip(":") + ":" if line.startswith("Parser key") else line for line in kept)
    text = _CLASS.sub(lambda match: match[1].rsplit(".", 1)[-1], text)
    text = re.sub(r"Parser key ", "", text)
    if unknown := re.search(r"Expected a dot import path string: (\S+)", text):
        text = f"unknown class {unknown[1]!r}: give a short name that `--help` lists, or package.module.Class"
    place = _place(message, args, paths)
    return f"{text} ({place})" if place else text


def user_error_behind(error: BaseException | None) -> UserError | None:
    """Return the user's mistake that another exception was raised from, if that is what happened."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _config_files(args: Sequence[str]) -> Iterator[Path]:
    for word, following in pairwise(args):
        if word in ("--config", "-c"):
            yield Path(following)
    yield from (Path(word.removeprefix("--config=")) for word in args if word.startswith("--config="))


def _syntax_error(path: Path) -> str | None:
    try:
        yaml.safe_load(path.read_text())
    except OSError as error:
        return f"configuration file {path} cannot be read: {error.strerror}"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"configuration file {path} is not valid YAML: {' '.join(str(error).split())}"
    return None


def _place(message: str, args: Sequence[str], paths: Sequence[Path]) -> str:
    """Return file and line of the innermost key that the message quotes, unless it stands on the command line."""
    quoted = re.findall(r"(?:key|[Oo]ption) [\"']([\w.]+)[\"']", message)
    if not quoted:
        return ""
    name = re.escape(quoted[-1].split(".")[-1])
    if any(re.match(rf"--([\w.]+\.)?{name}(=|\+|$)", word) for word in args):
        return "on the command line"
    for path in reversed(paths):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(rf"(^[\s-]*|[{{,]\s*){name}\s*:", line):
                return f"{path}, line {number}"
    return ""
