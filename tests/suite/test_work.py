"""Units of work: what they read from, and their configurations."""

from dataclasses import dataclass
from pathlib import Path

from impact_lightning.suite.work import Work, merged, placed, plain, texts


def test_a_unit_comes_after_those_whose_files_it_reads() -> None:
    config = {"model": {"weights": "${dense/fit}/checkpoints/best.ckpt"}, "more": ["${a}/x", {"y": "${dense/fit}/z"}]}
    work = Work("neurons", "test", config, ("dense",), checkpoint="${circuits/fit}/last.ckpt")
    assert work.after == ("dense/fit", "a", "circuits/fit")
    assert Work("dense/fit", "fit", {"lr": 1}, ("dense",)).after == ()


def test_units_are_replaced_everywhere() -> None:
    config = {"a": "${one}/x and ${two}", "b": [1, {"c": "${one}"}], "d": None, "e": 0.5}
    found = placed(config, {"one": "1", "two": "2"}.__getitem__)
    assert found == {"a": "1/x and 2", "b": [1, {"c": "1"}], "d": None, "e": 0.5}
    assert list(texts(found)) == ["1/x and 2", "1"]


def test_changes_replace_values_and_merge_mappings() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1], "e": {"f": 1}}
    assert merged(base, {"a": {"c": 3}, "d": [2], "e": None, "g": 4}) == {
        "a": {"b": 1, "c": 3},
        "d": [2],
        "e": None,
        "g": 4,
    }
    assert base["a"] == {"b": 1, "c": 2}
    assert merged({"augment": {"class_path": "X"}}, {"augment": None}) == {"augment": None}


def test_options_become_what_a_file_holds() -> None:
    @dataclass
    class Inner:
        path: Path

    class Namespace:
        def as_dict(self) -> dict[str, object]:
            return {"class_path": "X", "init_args": {"k": 8}}

    found = plain({"a": Inner(Path("x/y")), "b": (1, Namespace())})
    assert found == {"a": {"path": "x/y"}, "b": [1, {"class_path": "X", "init_args": {"k": 8}}]}
