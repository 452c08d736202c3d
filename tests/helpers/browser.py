"""A real browser, headless, that fails a test on what its console calls an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

DESKTOP, PHONE = (1280, 900), (390, 844)  # width and height in CSS pixels


@contextmanager
def page_of(size: tuple[int, int] = DESKTOP, *, touch: bool = False) -> Iterator[Page]:
    """An empty page of the system's Chromium. The test is skipped where there is no browser.

    Requests to other machines than this one are refused, and errors of the page are failures: uncaught exceptions,
    console.error, refused or failed requests.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium on the PATH")
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        # Chromium refuses its sandbox to root.
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=args)
        try:
            width, height = size
            context = browser.new_context(viewport={"width": width, "height": height}, has_touch=touch)
            page = context.new_page()
            page.on("console", lambda m: errors.append(f"{m.text} ({m.location})") if m.type == "error" else None)
            page.on("pageerror", lambda e: errors.append(str(e)))
            page.route(
                lambda url: not url.startswith(("http://127.0.0.1:", "http://localhost:", "data:", "blob:", "file:")),
                lambda route: (errors.append(f"asked for {route.request.url}"), route.abort()),
            )
            yield page
        finally:
            browser.close()
    assert not errors, errors
