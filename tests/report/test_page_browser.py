"""The page of a run with unkind names in a real browser: silent, as wide as the screen, and printed as a whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from impact_lightning.report.page import write_report
from tests.report import browser
from tests.report.browser import DESKTOP, PHONE, Tab
from tests.report.outcomes import EVIL, write_run

pytestmark = pytest.mark.skipif(bool(browser.why_not()), reason=browser.why_not())
FOLDED = "document.querySelectorAll('details:not([open])').length"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return write_report(folder)


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser.browser() as tab:
        yield tab


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_is_silent_and_no_wider_than_the_screen(report: Path, tab: Tab, size: tuple[int, int]) -> None:
    tab.said.clear()
    tab.page.set_viewport_size({"width": size[0], "height": size[1]})
    tab.open(report)
    tab.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.said == []
    assert tab.foreign() == []
    assert any(EVIL in text for text in tab.texts("table.answers th"))


def test_the_answer_is_on_the_first_screen(report: Path, tab: Tab) -> None:
    tab.page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
    tab.open(report)
    box = tab.page.locator("table.answers").bounding_box()
    assert box["y"] + box["height"] < DESKTOP[1]


def test_what_is_folded_is_printed_and_folded_again(report: Path, tab: Tab) -> None:
    tab.open(report)
    folded = tab.page.evaluate(FOLDED)
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.page.evaluate(FOLDED) == 0
    tab.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.page.evaluate(FOLDED) == folded > 0


def test_a_link_into_what_is_folded_opens_it(report: Path, tab: Tab) -> None:
    tab.open(report, "#more-curves-attribution-rise")
    assert tab.page.locator("#more-curves-attribution-rise").is_visible()


def test_the_first_key_leads_past_the_navigation(report: Path, tab: Tab) -> None:
    tab.open(report)
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.className") == "skip"
    tab.page.keyboard.press("Enter")
    assert tab.page.evaluate("document.activeElement.id") == "main"
