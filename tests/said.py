"""What a command says of a mistake."""

from collections.abc import Callable

import pytest


def said(capsys: pytest.CaptureFixture[str], body: Callable[[], object]) -> str:
    """Return the one message with which a command ends in exit code 2."""
    with pytest.raises(SystemExit) as ending:
        body()
    assert ending.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message
