"""The page in a real browser: lines are drawn, sliders moved, files uploaded and downloaded."""

from __future__ import annotations

import json
import math
import re
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.browser import DESKTOP, PHONE, page_of
from munit_fast.app import serve, translation
from munit_fast.app.translation import Style, Translator
from munit_fast.models.munit import MUNIT, UNIT

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.slow
PATIENCE = 100_000  # milliseconds, for a busy machine
# Nothing was loaded, added or moved for most of a second: parts of the page come one after the other. The network is
# never idle, since the page keeps a connection.
SETTLED = """() => {
    const now = [performance.getEntriesByType("resource").length, document.body.scrollHeight,
        document.querySelectorAll("*").length].join();
    if (window.seenBefore !== now) [window.seenBefore, window.seenAt] = [now, performance.now()];
    return performance.now() - window.seenAt > 800;
}"""
CELLS, RESULT = "#styles .thumbnail-item img", "#result img"


@pytest.fixture(autouse=True)
def no_traceback(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Whatever a user does, the console of the server stays readable."""
    yield
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err


def opened(page: Page, address: str) -> Page:
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector("#drawing canvas")
    page.wait_for_selector("#drawing .pens button")  # its script has run
    page.wait_for_selector("#about")
    page.wait_for_selector("#result")
    page.wait_for_function(SETTLED)
    return page


def draw_circle(page: Page, x: float, y: float, radius: float) -> None:
    """With the mouse; x, y and radius are shares of the paper's side."""
    canvas = page.locator("#drawing canvas")
    canvas.hover()  # which waits until nothing moves it any more
    box = canvas.bounding_box()
    assert box is not None
    places = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 33)]
    at = [(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in places]
    page.mouse.move(*at[0])
    page.mouse.down()
    for place in at[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def sources(found: Locator) -> list[str]:
    return found.evaluate_all("images => images.map(image => image.src)")


def wait_for(page: Page, condition: str, argument: Any) -> None:
    page.wait_for_function(condition, arg=argument)


def marked(page: Page) -> list[int]:
    """Which cells of the grid have the ring."""
    page.wait_for_timeout(300)  # it comes after the picture
    return page.locator("#styles .thumbnail-item").evaluate_all(
        "cells => cells.flatMap((cell, i) => (getComputedStyle(cell).outlineStyle === 'solid' ? [i] : []))"
    )


def changed(page: Page, selector: str, before: list[str]) -> list[str]:
    """The sources of the images, once they are others than before, and loaded."""
    condition = """([selector, before]) => {
        const images = [...document.querySelectorAll(selector)];
        return images.length && images.every((image) => image.complete && image.naturalWidth)
            && images.map((image) => image.src).join() !== before.join();
    }"""
    wait_for(page, condition, [selector, before])
    return sources(page.locator(selector))


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read()


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(BytesIO(data)), int)


def download(page: Page, label: str) -> bytes:
    with page.expect_download() as started:
        page.locator(f"#save-{label}").click()
    return Path(started.value.path()).read_bytes()


def sliders(page: Page) -> list[float]:
    found = page.locator("#code input[type=range]")
    return [float(value) for value in found.evaluate_all("inputs => inputs.map(input => input.value)")]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    image = Image.new("RGB", (96, 80), "white")
    image.paste("black", (20, 20, 24, 70))
    image.paste("black", (20, 66, 80, 70))
    image.save(path)
    return path


def test_draw_choose_a_style_and_change_it(address: str, model: MUNIT) -> None:
    translator = Translator(model)
    with page_of(DESKTOP) as page:
        opened(page, address)
        draw_circle(page, 0.5, 0.5, 0.3)
        first = changed(page, CELLS, [])
        assert len(first) == 6 and len(set(first)) == 6
        assert marked(page) == [0]
        captions = page.locator("#styles .caption-label").all_inner_texts()
        assert [int(text.split()[-1]) for text in captions] == list(range(10, 16))
        assert np.ptp(pixels(fetched(first[0])), axis=2).max() > 50  # coloured
        assert pixels(fetched(first[0])).shape == (64, 64, 3)

        draw_circle(page, 0.4, 0.4, 0.05)
        second = changed(page, CELLS, first)
        assert not set(first) & set(second)

        before = sources(page.locator(RESULT))
        assert pixels(fetched(before[0])).tolist() == pixels(fetched(second[0])).tolist()
        page.locator("#styles .thumbnail-item").nth(2).click()
        chosen = changed(page, RESULT, before)
        assert (np.abs(pixels(fetched(chosen[0])) - pixels(fetched(second[2]))) <= 1).all()
        assert sliders(page) == translation.to_sliders(translator.random_style(12).code)
        assert marked(page) == [2]

        page.locator("#code-3 input[type=range]").focus()
        for _ in range(80):
            page.keyboard.press("ArrowRight")
        wanted = round(translation.to_sliders(translator.random_style(12).code)[2] + 0.8, 2)
        wait_for(page, "value => document.querySelector('#code-3 input[type=range]').value == value", wanted)
        moved = changed(page, RESULT, chosen)
        assert marked(page) == []
        # Until the last of the steps was answered, the style file has another number.
        for _ in range(100):
            style = json.loads(download(page, "style"))
            if round(style["code"][2], 2) == wanted:
                break
        code = translator.random_style(12).code.clone()
        code[2] = wanted
        assert style["seed"] is None and style["direction"] == "a2b" and style["model"] == translator.name
        assert torch.equal(torch.tensor(style["code"]), code)
        moved = sources(page.locator(RESULT))
        assert np.abs(pixels(fetched(moved[0])) - pixels(fetched(chosen[0]))).max() > 3
        assert download(page, "picture") == fetched(moved[0])
        grid = pixels(download(page, "grid"))
        assert grid.shape == (2 * 66 + 2, 4 * 66 + 2, 3)

        page.locator("#shuffle").click()
        third = changed(page, CELLS, second)
        assert not set(second) & set(third)
        assert sources(page.locator(RESULT)) == moved  # the style that was made by hand stays
        assert marked(page) == []

        page.get_by_role("button", name="Clear").click()
        page.get_by_role("button", name="Undo").click()
        draw_circle(page, 0.6, 0.4, 0.05)
        changed(page, CELLS, third)


def test_what_was_taken_away_is_forgotten(address: str, picture: Path) -> None:
    with page_of(DESKTOP) as page:
        opened(page, address)
        draw_circle(page, 0.5, 0.5, 0.3)
        first = changed(page, CELLS, [])
        page.get_by_role("button", name="Clear").click()
        blank(page)
        page.locator("#shuffle").click()
        page.locator("#direction label").nth(1).click()
        page.locator("#options button").first.click()
        page.locator("#seed input").fill("77")
        page.locator("#seed input").press("Enter")
        page.wait_for_timeout(1500)
        blank(page)
        page.locator("#direction label").nth(0).click()

        page.get_by_role("button", name="Undo").click()
        changed(page, CELLS, first)
        page.get_by_role("button", name="Undo").click()  # the only line
        blank(page)

        page.get_by_role("tab", name="Upload or camera").click()
        page.locator("#picture input[type=file]").first.set_input_files(picture)
        changed(page, CELLS, [])
        page.locator("#picture button[aria-label='Clear'], #picture button[aria-label='Remove Image']").first.click()
        blank(page)


def blank(page: Page) -> None:
    """Wait until nothing of a picture is shown any more."""
    wait_for(page, "selectors => !document.querySelector(selectors)", f"{CELLS}, {RESULT}")
    assert not page.locator("#downloads button:enabled, #downloads a[href]").count()


def test_leaving_the_field_of_the_seed_changes_nothing(address: str) -> None:
    with page_of(DESKTOP) as page:
        opened(page, address)
        draw_circle(page, 0.5, 0.5, 0.3)
        first = changed(page, CELLS, [])
        page.locator("#options button").first.click()
        field = page.locator("#seed input")
        field.focus()
        field.blur()
        page.wait_for_timeout(1500)
        assert sources(page.locator(CELLS)) == first
        field.fill("-5")
        field.press("Enter")
        changed(page, CELLS, first)
        assert field.input_value() == "0" and page.locator(".toast-body").count() == 1


def test_all_styles_are_seen_at_once(address: str) -> None:
    with page_of(DESKTOP) as page:
        opened(page, address)
        draw_circle(page, 0.5, 0.5, 0.3)
        page.locator("#options button").first.click()
        page.locator("#count input[type=number]").fill("12")
        page.locator("#count input[type=number]").blur()
        wait_for(page, "([selector, count]) => document.querySelectorAll(selector).length === count", [CELLS, 12])
        # The cells get their height with their pictures, one after the other.
        nothing_hidden = """() => ![...document.querySelectorAll("#styles, #styles *")].some((e) =>
            e.scrollHeight > e.clientHeight + 2 && getComputedStyle(e).overflowY !== "visible" && e.clientHeight
        )"""
        page.wait_for_function(nothing_hidden, timeout=20_000)


def test_upload_a_picture_and_bad_files(address: str, model: MUNIT, picture: Path, tmp_path: Path) -> None:
    translator = Translator(model)
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "large.png").write_bytes(b"0" * 2_000_000)
    with page_of(DESKTOP) as page:
        opened(page, address)
        page.get_by_role("tab", name="Upload or camera").click()
        page.locator("#picture input[type=file]").first.set_input_files(tmp_path / "text.png")
        toast = page.locator(".toast-body").first
        toast.wait_for()
        assert "text.png" in toast.inner_text() and str(tmp_path) not in toast.inner_text()
        assert not page.locator(CELLS).count()

        page.locator("#picture input[type=file]").first.set_input_files(picture)
        first = changed(page, CELLS, [])
        image = translator.read(picture, "a")
        found = translator.translate(image, "a2b", translator.random_styles(10, 6))
        for source, wanted in zip(first, found):
            assert (pixels(fetched(source)) == np.asarray(translation.to_picture(wanted), int)).all()

        page.locator("#direction label").nth(1).click()
        second = changed(page, CELLS, first)
        assert not set(first) & set(second)
        found = translator.translate(translator.read(picture, "b"), "b2a", translator.random_styles(10, 6))
        assert (pixels(fetched(second[5])) == np.asarray(translation.to_picture(found[5]), int)).all()

        page.locator("#options button").first.click()
        page.locator("#size label").nth(1).click()
        third = changed(page, CELLS, second)
        assert pixels(fetched(third[0])).shape == (80, 96, 3)
        page.locator("#picture button[aria-label='Clear'], #picture button[aria-label='Remove Image']").first.click()
        blank(page)


def test_take_a_style_load_one_and_animate(address: str, model: MUNIT, picture: Path, tmp_path: Path) -> None:
    translator = Translator(model)
    example = tmp_path / "example.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(example)
    saved = Style(torch.linspace(-1, 1, 8))
    (tmp_path / "style.json").write_text(translation.style_json(saved, "b2a", "another <b>model</b>"))
    (tmp_path / "bad.json").write_text("[NaN]")
    with page_of(DESKTOP) as page:
        opened(page, address)
        page.get_by_role("tab", name="Upload or camera").click()
        page.locator("#picture input[type=file]").first.set_input_files(picture)
        cells = changed(page, CELLS, [])
        before = changed(page, RESULT, [])
        page.locator("#from-picture button").first.click()
        page.locator("#example input[type=file]").first.set_input_files(example)
        taken = changed(page, RESULT, before)
        wanted = translator.style_of(example, "a2b")
        assert sliders(page) == translation.to_sliders(wanted.code)
        image = translator.read(picture, "a")
        picture_of = translation.to_picture(translator.translate(image, "a2b", [wanted])[0])
        assert (pixels(fetched(taken[0])) == np.asarray(picture_of, int)).all()

        load = page.get_by_test_id("Load a saved style-upload-button")
        load.set_input_files(tmp_path / "bad.json")
        toast = page.locator(".toast-body").first
        toast.wait_for()
        assert "bad.json" in toast.inner_text()
        load.set_input_files(tmp_path / "style.json")
        loaded = changed(page, CELLS, cells)
        assert page.locator("#direction input").nth(1).is_checked()
        assert sliders(page) == translation.to_sliders(saved.code)
        assert marked(page) == []
        assert page.locator(".toast-body", has_text="another <b>model</b>").count() == 1

        page.locator("#animation button").first.click()
        page.locator("#animate").click()
        moving = fetched(changed(page, "#moving img", [])[0])
        with Image.open(BytesIO(moving)) as animation:
            assert animation.format == "WEBP" and animation.n_frames > 10  # type: ignore[attr-defined]
            start = np.asarray(animation.convert("RGB"), int)
        assert np.abs(start - pixels(fetched(loaded[0]))).mean() < 10  # from the first cell on
        assert download(page, "animation") == moving


def test_the_page_fits_a_phone(address: str) -> None:
    with page_of(PHONE, touch=True) as page:
        opened(page, address)
        canvas = page.locator("#drawing canvas")
        box = canvas.bounding_box()
        assert box is not None and box["width"] > 250
        canvas.tap()  # a dot
        assert len(changed(page, CELLS, [])) == 6
        page.evaluate("scrollTo(0, 0)")
        cells = [cell.bounding_box() for cell in page.locator("#styles .thumbnail-item").all()[:3]]
        assert all(cell is not None and cell["y"] + cell["height"] <= PHONE[1] for cell in cells)
        changed(page, RESULT, [])
        overflow = """() => [...document.querySelectorAll("body *")].filter((e) => {
            const box = e.getBoundingClientRect();
            return box.width && box.height && (box.right > innerWidth + 1 || box.left < -1);
        }).map((e) => e.outerHTML.slice(0, 200))"""
        assert page.evaluate(overflow) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        footer = page.locator("#about").inner_text()
        assert re.search(r"CC BY-SA 4\.0", footer) and "OpenMoji" in footer


def test_a_unit_model_has_a_page_without_styles(small_config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = UNIT(small_config).eval()
    with serve(model) as address, page_of(DESKTOP) as page:
        opened(page, address)
        draw_circle(page, 0.5, 0.5, 0.3)
        shown = changed(page, RESULT, [])
        assert pixels(fetched(shown[0])).shape == (32, 32, 3)
        assert not page.locator("#shuffle, #styles, #code, #animation").filter(visible=True).count()
        assert page.locator("#title h1").inner_text() != "UNIT" and "(UNIT)" not in page.locator("#about").inner_text()
        draw_circle(page, 0.4, 0.5, 0.1)
        changed(page, RESULT, shown)
