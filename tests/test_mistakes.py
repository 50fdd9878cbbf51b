"""Messages lose the parser's noise and gain the file's line."""

from pathlib import Path

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.multiprocessing.spawn import ProcessRaisedException

from impact_lightning.mistakes import explain, user_error_behind
from impact_lightning.types import UserError

NOISY = """Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.LightningDataModule'>, <class 'NoneType'>]
  Errors:
    - Parser key "size":
        Expected a <class 'int'>. Got value: big
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'size': 'big'}"""


def test_noise_goes_and_the_line_of_the_right_parent_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model:\n  size: 3\ndata:\n  init_args:\n    size: big\n")
    message = explain(UserError(NOISY), ["fit", "--config", str(path)])
    assert message == f'"data.size": Expected a int. Got value: big ({path}, line 5)'


def test_a_value_from_the_command_line_is_not_looked_for_in_files(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data:\n  size: 3\n")
    message = explain(UserError(NOISY), [f"--config={path}", "--data.size=big"])
    assert str(message).endswith("(on the command line)")


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_users_mistake_is_found_behind_other_exceptions(depth: int) -> None:
    error: BaseException = UserError("the file x is missing")
    for _ in range(depth):
        outer = ValueError("wrapped")
        outer.__cause__ = error
        error = outer
    assert str(user_error_behind(error)) == "the file x is missing"


def test_a_mistake_in_a_forked_rank_is_found_in_its_traceback() -> None:
    text = "-- Process 1 terminated\nTraceback:\n  File x\nimpact_lightning.types.UserError: batch 63 over 2 ranks\n"
    assert str(user_error_behind(ProcessRaisedException(text, 1, 7))) == "batch 63 over 2 ranks"


def test_a_full_disk_and_a_missing_accelerator_are_for_the_user() -> None:
    for error in (OSError(28, "No space left on device", "runs/x"), MisconfigurationException("no CUDA here")):
        assert explain(error, []) == str(error)


def test_other_exceptions_are_not_the_users() -> None:
    assert user_error_behind(RuntimeError("a bug")) is None
    assert user_error_behind(ProcessRaisedException("RuntimeError: a bug", 1, 7)) is None
