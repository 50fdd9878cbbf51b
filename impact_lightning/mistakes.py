"""Messages for people: what the configuration parser says, shortened to the key, the value, and the file's line."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.multiprocessing.spawn import ProcessRaisedException

from impact_lightning.types import UserError

_NOISE = (
    re.compile(r"Does not validate against any of the Union subtypes"),
    re.compile(r"Subtypes: "),
    re.compile(r"Errors:$"),
    re.compile(r"(- )?Expected a <class 'NoneType'>"),
    re.compile(r"Given value( type)?: "),
)
_CLASS = re.compile(r"<class '([\w.]+)'>")


def explain(error: BaseException, args: Sequence[str]) -> str | None:
    """Return what the user did wrong, or None if this is no mistake of the user.

    Args:
        error: What has ended the command.
        args: The words of the command line.
    """
    paths = list(_config_files(args))
    problems = [problem for path in paths if (problem := _syntax_error(path))]
    if problems:
        return problems[0]
    mistake = user_error_behind(error)
    return None if mistake is None else shorten(str(mistake), args, paths)


def shorten(message: str, args: Sequence[str], paths: Sequence[Path]) -> str:
    """Return a parser's message without its noise, and with the line of the file that holds the key."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = [line for line in lines if line and not any(noise.match(line) for noise in _NOISE)]
    text = " ".join(line.rstrip(":") + ":" if line.startswith("Parser key") else line for line in kept)
    text = _CLASS.sub(lambda match: match[1].rsplit(".", 1)[-1], text)
    text = re.sub(r"Parser key ", "", text)
    while (joined := re.sub(r'"([\w.]+)": "([\w.]+)"', r'"\1.\2"', text)) != text:
        text = joined  # "model": "lr" is the key model.lr
    if unknown := re.search(r"Expected a dot import path string: (\S+)", text):
        text = f"unknown class {unknown[1]!r}: give a short name that `--help` lists, or package.module.Class"
    place = _place(message, args, paths)
    return f"{text} ({place})" if place else text


def user_error_behind(error: BaseException | None) -> UserError | None:
    """Return the user's mistake that an exception was raised from, or that Lightning found, if it is one."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        # No such accelerator, options that exclude each other; a folder that cannot be written, a full disk.
        if isinstance(error, MisconfigurationException | OSError):
            return UserError(str(error))
        if isinstance(error, ProcessRaisedException):  # of a forked rank, only the text of its traceback is left
            said = re.findall(r"^[\w.]*UserError: (.*)$", str(error), re.MULTILINE)
            return UserError(said[-1]) if said else None
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
    keys = [part for key in quoted for part in key.split(".")]
    if not keys:
        return ""
    if any(re.match(rf"--([\w.]+\.)?{re.escape(keys[-1])}(=|\+|$)", word) for word in args):
        return "on the command line"
    for path in reversed(paths):
        for names, line in _keys(yaml.compose(path.read_text()), ()):
            if names[-1] == keys[-1] and set(keys) <= set(names):
                return f"{path}, line {line}"
    return ""


def _keys(node: yaml.Node | None, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the names from the root to each key of a document, and its line."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item, above)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            names = (*above, str(key.value))
            yield names, key.start_mark.line + 1
            yield from _keys(value, names)
