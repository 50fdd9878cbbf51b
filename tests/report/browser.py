"""A real browser for tests: what it was asked for and what it complained about is written down."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from re import Pattern
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESKTOP, PHONE = (1200, 900), (390, 844)


def why_not() -> str:
    """Return why no browser can be driven here; nothing if one can."""
    if find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright"
    return "" if browser_path() else f"no browser is installed: none of {', '.join(NAMES)}; apt-get install chromium"


def browser_path() -> str | None:
    """Return the browser: that of the system, since tests load none of their own."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """A page in the browser.

    Args:
        page: The page of playwright.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []  # errors and warnings
        self.asked: list[str] = []  # what was loaded
        page.on(
            "console", lambda message: self.said.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", self._dialog)
        page.on("request", lambda request: self.asked.append(request.url))

    def _dialog(self, dialog: Any) -> None:
        self.said.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def open(self, path: Path, hash_: str = "") -> None:
        """Open a file; a page that is open already is loaded anew."""
        self.page.goto("about:blank")
        self.asked.clear()
        self.page.goto(f"{path.as_uri()}{hash_}")

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that fit."""
        found: list[str] = self.page.locator(selector).all_inner_texts()
        return found

    def shows(self, selector: str, text: str | Pattern[str]) -> None:
        """Wait until an element has a text: links within the page are followed a moment after the click."""
        import_module("playwright.sync_api").expect(self.page.locator(selector)).to_have_text(text)

    def foreign(self) -> list[str]:
        """Return what was asked for that is not in a file or in the page itself."""
        return [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))]


@contextmanager
def browser(size: tuple[int, int] = DESKTOP) -> Iterator[Tab]:
    """Start the browser with an empty page."""
    with import_module("playwright.sync_api").sync_playwright() as driver:
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has no sandbox
        started = driver.chromium.launch(executable_path=browser_path(), args=flags)
        try:
            page = started.new_page(viewport={"width": size[0], "height": size[1]})
            page.set_default_timeout(10_000)
            yield Tab(page)
        finally:
            started.close()
