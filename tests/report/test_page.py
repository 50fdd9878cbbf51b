"""The page holds everything, escapes every name, reaches for nothing, and shows what is missing."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from impact_lightning.report import accuracy, page
from impact_lightning.report.page import script_data, write_report
from impact_lightning.report.section import Section
from impact_lightning.suite.outcome import Outcome
from impact_lightning.types import UserError
from tests.report.outcomes import CLASSES, EVIL, NAMES, TASK, write_run

VOID = {"meta", "br", "img", "link", "input", "hr", "wbr"}


class Page(HTMLParser):
    """Everything that a browser would find."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.wrong: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def attributes(self, name: str) -> list[str]:
        """Return the values of an attribute wherever it stands."""
        return [attributes[name] for _, attributes in self.found if name in attributes]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return write_report(folder).read_text()


@pytest.fixture(scope="module")
def read(html: str) -> Page:
    return Page(html)


def test_the_page_is_well_formed(read: Page) -> None:
    assert read.wrong == []
    assert read.open == []


def test_sections_stand_in_their_order(read: Page) -> None:
    names = [attributes["id"] for tag, attributes in read.found if tag == "section"]
    first = ["answer", "planted", "neurons", "sae", "features", "circuit-sizes", "circuits_viewer", "attribution"]
    assert names == [*first, "classes", "accuracy", "methods"]


def test_every_anchor_is_there_once(read: Page) -> None:
    counts = Counter(read.attributes("id"))
    assert [name for name, n in counts.items() if n > 1] == []
    links = [href[1:] for href in read.attributes("href") if href.startswith("#")]
    assert set(links + read.attributes("aria-labelledby") + read.attributes("aria-describedby")) <= counts.keys()


@pytest.mark.parametrize(
    "name", [EVIL, TASK, *CLASSES[:3], "<i>a.png", "the hue of <b>objects</b>", "in pairs, <permuted>"]
)
def test_names_show_as_text(read: Page, html: str, name: str) -> None:
    data = "".join(re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL))
    alt = " ".join(read.attributes("alt"))
    assert name in read.text or name in alt or json.dumps(name).translate(page.UNSAFE) in data


def test_no_name_becomes_an_element_or_a_script(read: Page) -> None:
    assert [name for _, attributes in read.found for name in attributes if name.startswith("on")] == []
    assert all(value.startswith("data:image/jpeg;base64,") for value in read.attributes("src"))
    scripts = [attributes for tag, attributes in read.found if tag == "script"]
    assert [attributes for attributes in scripts if attributes and attributes.get("type") != "application/json"] == []
    assert len(scripts) == len(page.SCRIPTS) + sum("id" in attributes for attributes in scripts)


def test_nothing_is_loaded(read: Page, html: str) -> None:
    policy = read.attributes("content")
    wanted = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert any(value.startswith(wanted) for value in policy)
    for name in ("src", "href", "srcset", "poster", "action", "data"):
        assert [value for value in read.attributes(name) if re.match(r"\s*(\w+:)?//|javascript:", value)] == []
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in read.found} - {"form"}


def test_it_can_be_used_by_keyboard_and_read_aloud(read: Page) -> None:
    tags = dict(reversed(read.found))  # the first of each
    assert tags["html"]["lang"] == "en"
    assert any(attributes.get("class") == "skip" for _, attributes in read.found)
    assert all("tabindex" in attributes for _, attributes in read.found if attributes.get("class") == "scroll")
    assert all(attributes.get("alt") for tag, attributes in read.found if tag == "img")
    svgs = [attributes for tag, attributes in read.found if tag == "svg"]
    assert all(
        attributes["role"] == "img" and attributes["aria-label"] for attributes in svgs if "data-figure" in attributes
    )
    levels = [int(tag[1]) for tag, _ in read.found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_the_same_run_gives_the_same_bytes_wherever_it_is(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        write_run(tmp_path / name)
    pages = [write_report(tmp_path / name).read_bytes() for name in ("a", "b/c")]
    assert pages[0] == pages[1]
    assert str(tmp_path).encode() not in pages[0]


def test_it_says_where_the_report_is_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    (tmp_path / "units/neurons/neurons/models/dense/classes.csv").unlink()
    path = write_report(tmp_path)
    said = capsys.readouterr().out
    assert f"report: {path} (0." in said
    assert "not shown in Neurons: violins of dense: units/neurons/neurons/models/dense/classes.csv is missing" in said


def test_a_report_that_is_too_large_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    monkeypatch.setattr(page, "LARGE", 1000)
    monkeypatch.setattr(page, "builders", lambda: [])
    write_report(tmp_path)
    assert "more than 1 kB, browsers may be slow with it" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------- gaps

FILES = {
    "units/neurons/neurons/models/wanda50/classes.csv": "neurons",
    "units/attribution/attribution/dense/curves.safetensors": "attribution",
    "units/attribution/attribution/dense/maps.safetensors": "attribution",
    "units/attribution/attribution/dense/thumbnails.safetensors": "attribution",
}


def gaps(folder: Path, outcome: Outcome, sections: int = 11) -> list[tuple[str, str]]:
    """Return the sections with gaps, and these; the whole page is made."""
    made = page.page(outcome, folder)
    read = Page(made.html)
    assert len([tag for tag, _ in read.found if tag == "section"]) == sections
    assert all(gap in read.text for _, gap in made.gaps)
    return made.gaps


@pytest.mark.parametrize("is_there", [False, True], ids=["missing", "damaged"])
def test_a_missing_or_damaged_file_is_a_visible_gap(tmp_path: Path, is_there: bool) -> None:
    outcome = write_run(tmp_path)
    for name in FILES:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        if is_there:
            (tmp_path / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "plan.json").write_text('{"command": ')
    found = gaps(tmp_path, outcome)
    for name in [*FILES, "plan.json"]:
        assert any(name in gap for _, gap in found), name
    assert not any(str(tmp_path) in gap for _, gap in found)


def test_a_run_without_any_file_is_shown(tmp_path: Path) -> None:
    outcome = write_run(tmp_path / "whole")
    found = gaps(tmp_path, outcome)
    assert {title for title, _ in found} >= {"Neurons", "Attribution maps"}


def test_a_run_in_which_nothing_was_done_is_shown(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole")
    units = [replace(unit, state="waiting") for unit in whole.units]
    found = gaps(tmp_path, replace(whole, units=units, entries=[], planted=[]))
    assert {title for title, gap in found if "is waiting" in gap} >= {"Neurons", "Feature browser"}
    assert ("SAE features", "no dictionary was measured") in found
    gaps(tmp_path, Outcome("0", "nothing", {}, [], [], [], [], []), sections=5)


def test_levels_that_nobody_asked_for_have_no_section(tmp_path: Path) -> None:
    whole = write_run(tmp_path)
    asked = replace(whole, units=[unit for unit in whole.units if unit.level in ("", "neurons")])
    gaps(tmp_path, asked, sections=6)


def test_a_section_that_fails_takes_no_other_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(outcome: Outcome, folder: Path) -> Section:
        raise RuntimeError("tensor <x> is odd")

    outcome = write_run(tmp_path)
    monkeypatch.setattr(accuracy, "section", fail)
    assert ("Accuracy against sparsity", "RuntimeError: tensor <x> is odd") in gaps(tmp_path, outcome)


def test_a_unit_that_points_out_of_the_run_is_not_read(tmp_path: Path) -> None:
    outcome = write_run(tmp_path / "run")
    object.__setattr__(next(unit for unit in outcome.units if unit.name == "neurons"), "folder", "../elsewhere")
    assert any("outside of the run" in gap for title, gap in gaps(tmp_path / "run", outcome) if title == "Neurons")


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 2, "version": "0.1", "mod', "is not complete JSON"),
        ('{"schema": 1, "records": []}', "single `test`"),
        ('{"schema": 2}', "is damaged"),
        ("[]", "is no results file"),
    ],
)
def test_refuses_what_is_no_outcome_and_keeps_the_old_report(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "results.json").write_text(content)
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_refuses_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        write_report(tmp_path)


def test_data_survive_the_way_into_a_script() -> None:
    data = {"names": [*CLASSES, *NAMES, "\u2028\u2029<!--", "]]>"], "value": 0.1}
    text = str(script_data(data))
    assert json.loads(text) == data
    assert not set("<>&\u2028\u2029") & set(text)
