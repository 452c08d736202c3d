"""The page of the documentation that colours drawings in the reader's browser, in a real one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import munit_fast as mf
from helpers.browser import DESKTOP, PHONE, page_of
from munit_fast.app.translation import Translator
from munit_fast.data import resize_short_side, to_model_range
from munit_fast.models.portable import write_portable

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.timeout(600)  # the first test exports the model, and lets npm load what it needs
ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "docs" / "browser"
SKETCHES = ROOT / "docs" / "pretrained" / "sketches"
COUNT = "Number(document.querySelector('#drawing-pad').dataset.translations ?? 0)"
SETTLED = "document.querySelector('.pad-grid').ariaBusy === 'false'"
# What the module that the page imported has, arrays as base64: a module is loaded once.
SHOWN = """async () => {
  const { pad } = await import(new URL("pad.js", document.querySelector('script[src$="start.js"]').src));
  const { image, codes, values, shape, milliseconds } = pad.shown;
  const text = (array) => btoa(Array.from(new Uint8Array(array.buffer), (byte) => String.fromCharCode(byte)).join(""));
  const picture = pad.paper.canvas.toDataURL();
  return { image: text(image), codes: text(codes), values: text(values), shape, milliseconds, picture };
}"""
KEPT = """async () => {
  const { pad } = await import(new URL("pad.js", document.querySelector('script[src$="start.js"]').src));
  return pad.paper.steps.map(({ picture }) => picture?.width);
}"""
ARRAYS = ("image", "codes", "values")
HOUSE = [[(0.2, 0.45), (0.2, 0.85), (0.8, 0.85), (0.8, 0.45)], [(0.1, 0.5), (0.5, 0.15), (0.9, 0.5), (0.1, 0.5)]]


def build(folder: Path, source: Path = SOURCE, **env: str) -> str:
    """Run build.py; what it says."""
    command = [sys.executable, str(source / "build.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ, **env})
    assert not done.returncode, done.stderr
    return done.stderr


def page_tree(root: Path) -> Path:
    """What Sphinx needs for the page alone; the folder of the documentation's sources."""
    docs = root / "docs"
    (docs / "_static").mkdir(parents=True)
    (root / "examples").mkdir()
    for notebook in (ROOT / "examples").glob("*.ipynb"):  # conf.py copies them
        shutil.copy(notebook, root / "examples")
    shutil.copy(ROOT / "docs" / "_static" / "site.css", docs / "_static")
    for name in ("conf.py", "browser.md"):
        shutil.copy(ROOT / "docs" / name, docs)
    shutil.copytree(SOURCE, docs / "browser", ignore=shutil.ignore_patterns("node_modules"))
    (docs / "index.md").write_text("# Index\n\n```{toctree}\nbrowser\n```\n")
    return docs


def sphinx(docs: Path, html: Path) -> str:
    """Build the page; what Sphinx says."""
    pytest.importorskip("pydata_sphinx_theme")
    pytest.importorskip("myst_nb")
    # The notebook and the pages that are linked to are not there.
    options = ["-q", "-D", "nb_execution_mode=off", "-D", "suppress_warnings=toc.not_included,myst.xref_missing"]
    command = [sys.executable, "-m", "sphinx", *options, str(docs), str(html)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert not done.returncode, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to serve: the page is below a path, as on most hosts."""
    root = tmp_path_factory.mktemp("site")
    docs = page_tree(root / "source")
    said = build(docs / "_static" / "browser")
    if not (docs / "_static" / "browser").exists():
        pytest.skip(said.strip())
    assert sphinx(docs, root / "some" / "path") == ""
    return root


@pytest.fixture(scope="module")
def model() -> mf.MUNIT:
    return mf.MUNIT.from_pretrained("openmoji-lines2color")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server of plain files, which knows nothing of this site."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def opened(folder: Path, path: str, size: tuple[int, int] = DESKTOP, *, touch: bool = False) -> Iterator[Page]:
    """The page in a browser, after it coloured its first example."""
    with served(folder) as address, page_of(size, touch=touch) as page:
        page.goto(f"{address}/{path}")
        wait(page, 1)
        yield page


def wait(page: Page, translations: int) -> None:
    """Until so many drawings were coloured, and the page shows the last of them."""
    page.wait_for_function(f"{COUNT} >= {translations} && {SETTLED}", timeout=60_000)


@contextmanager
def another(page: Page) -> Iterator[None]:
    """Until the drawing was coloured once more, after what is done within."""
    before = page.evaluate(COUNT)
    yield
    wait(page, before + 1)


def draw(page: Page, strokes: list[list[tuple[float, float]]]) -> None:
    box = page.locator(".pad-canvas").bounding_box()
    assert box is not None
    for stroke in strokes:
        for i, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5 if i else 1)
            if not i:
                page.mouse.down()
        page.mouse.up()


def shown(page: Page) -> dict[str, Any]:
    """What the page translated last: the paper [H, W, 3] and the arrays that the model was given and gave."""
    found = page.evaluate(SHOWN)
    arrays = {name: torch.from_numpy(np.frombuffer(b64decode(found[name]), "<f4").copy()) for name in ARRAYS}
    arrays["values"] = arrays["values"].reshape(found["shape"])
    return {**arrays, "milliseconds": found["milliseconds"], "paper": decoded(found["picture"])}


def decoded(url: str) -> np.ndarray[Any, Any]:
    """The colours [H, W, 3] of a canvas's toDataURL."""
    return np.array(Image.open(BytesIO(b64decode(url.partition(",")[2]))).convert("RGB"))


def pixels(canvas: Locator) -> np.ndarray[Any, Any]:
    """The colours of a canvas [H, W, 3]."""
    return decoded(canvas.evaluate("c => c.toDataURL()"))


@pytest.mark.slow
def test_a_drawing_is_coloured_as_in_python(root: Path, model: mf.MUNIT) -> None:
    with opened(root, "some/path/browser.html") as page:
        example = shown(page)["paper"][:, :, 0] < 128
        with another(page):
            draw(page, HOUSE)
        found = shown(page)

        # The first stroke replaced the example, and its line is where the mouse was.
        paper = found["paper"]
        assert paper[int(0.85 * 512), 256].max() == 0 and paper[300, 256].min() == 255
        assert example.sum() > 1000 and (example & (paper[:, :, 0] < 128)).sum() < 0.6 * example.sum()
        image = found["image"].reshape(3, 64, 64)
        wanted = to_model_range(resize_short_side(paper, 64))
        assert (image - wanted).abs().max() <= 1.01 / 127.5  # a grey level

        codes = found["codes"].reshape(6, 8)
        expected = model.translate(image[None], style=codes)
        torch.testing.assert_close(found["values"], expected, atol=1e-3, rtol=0)
        assert (expected[0, 0] - expected[0, 1]).abs().mean() > 0.01

        tiles = page.locator(".pad-tile canvas")
        assert tiles.count() == 6
        for tile, translation in zip(tiles.all(), expected[0]):
            mean = (translation.clamp(-1, 1).mean(dim=(1, 2)) + 1) * 127.5
            np.testing.assert_allclose(pixels(tile).mean(axis=(0, 1)), mean.numpy(), atol=2)
        rounded = int(found["milliseconds"] + 0.5)  # half upwards, as JavaScript rounds
        assert f" {rounded} milliseconds" in page.locator(".pad-status").inner_text()
        assert "CC BY-SA" in page.locator(".pad-about").inner_text()


@pytest.mark.slow
def test_styles_are_those_of_their_seeds(root: Path) -> None:
    with opened(root, "some/path/browser.html") as page:
        first = shown(page)
        names = [tile.inner_text() for tile in page.locator(".pad-tile").all()]
        with another(page):
            page.locator("[data-action=others]").click()
        second = shown(page)
        assert torch.equal(second["image"], first["image"])
        assert not np.intersect1d(second["codes"], first["codes"]).size
        assert (second["values"] - first["values"]).abs().mean(dim=(0, 2, 3, 4)).min() > 0.01
        assert not {tile.inner_text() for tile in page.locator(".pad-tile").all()} & set(names)
        with another(page):
            page.locator("[data-control=seed]").fill("1")
            page.locator("[data-control=seed]").press("Enter")
        again = shown(page)
        assert torch.equal(again["codes"], first["codes"]) and torch.equal(again["values"], first["values"])

        codes = page.evaluate("""async () => {
          const url = new URL("input.js", document.querySelector('script[src$="start.js"]').src);
          const { styleCode } = await import(url);
          return Array.from({ length: 4000 }, (_, seed) => [...styleCode(seed, 8)]);
        }""")
        codes = np.array(codes)
        assert np.abs(codes.mean(axis=0)).max() < 0.06  # 3.8 standard errors
        np.testing.assert_allclose(np.cov(codes.T), np.eye(8), atol=0.09)
        np.testing.assert_allclose((codes**4).mean(), 3, atol=0.2)  # normal, not another distribution
        np.testing.assert_allclose((codes[1:] * codes[:-1]).mean(axis=0), 0, atol=0.07)  # one seed and the next


@pytest.mark.slow
def test_files_are_coloured(root: Path, tmp_path: Path) -> None:
    sketch = SKETCHES / "quickdraw-sailboat.png"
    (tmp_path / "damaged.png").write_bytes(sketch.read_bytes()[:60])
    wide = Image.new("RGBA", (300, 100), (0, 0, 0, 0))
    wide.paste((0, 0, 0, 255), (100, 40, 200, 60))
    wide.save(tmp_path / "wide.png")
    with opened(root, "some/path/browser.html") as page:
        field = page.locator("[data-control=file]")
        with another(page):
            field.set_input_files(sketch)
        image = shown(page)["image"].reshape(3, 64, 64).numpy()
        gray = np.asarray(Image.open(sketch).convert("RGB"))
        wanted = to_model_range(resize_short_side(gray, 64)).numpy()
        assert np.abs(image - wanted).mean() < 0.02  # it went by way of the paper
        assert np.corrcoef(image.ravel(), wanted.ravel())[0, 1] > 0.98

        before = page.locator(".pad-status").inner_text()
        field.set_input_files(tmp_path / "damaged.png")
        page.wait_for_function("t => document.querySelector('.pad-status').textContent !== t", arg=before)
        assert "damaged.png" in page.locator(".pad-status").inner_text()

        with another(page):  # as wide as the paper, in its middle, transparency as white
            field.set_input_files(tmp_path / "wide.png")
        paper = shown(page)["paper"]
        assert paper[256, 256].tolist() == [0, 0, 0]
        assert paper[256, 60].tolist() == paper[120, 256].tolist() == [255] * 3


@pytest.mark.slow
def test_tools(root: Path, model: mf.MUNIT) -> None:
    middle = [[(0.5, 0.5), (0.52, 0.5)]]
    with opened(root, "some/path/browser.html") as page:
        canvas, tile = page.locator(".pad-canvas"), page.locator(".pad-tile").first
        with another(page):
            draw(page, [[(0.1, 0.5), (0.9, 0.5)]])
        line = (pixels(canvas)[:, 256, 0] < 128).sum()
        assert line == pytest.approx(1.8 * 8, abs=1)  # as wide as the lines of the training pictures
        with another(page):
            page.locator("[data-control=width]").fill("4")
            draw(page, middle)
        assert (pixels(canvas)[:, 261, 0] < 128).sum() == pytest.approx(4 * 8, abs=1)
        with another(page):
            page.keyboard.press("Control+z")
        assert (pixels(canvas)[:, 261, 0] < 128).sum() == line
        with another(page):
            page.locator("[data-tool=eraser]").click()
            draw(page, middle)
        assert pixels(canvas)[:, 261].min() == 255 and pixels(canvas)[256, 100].max() == 0

        page.locator("[data-action=clear]").click()
        page.wait_for_function("document.querySelector('.pad-tile').disabled")
        assert pixels(canvas).min() == pixels(tile.locator("canvas")).min() == 255
        with another(page):
            page.locator("[data-action=undo]").click()
        assert pixels(canvas).min() == 0 and tile.is_enabled()

        with another(page):
            page.get_by_role("button", name="Example: cat").click()
        with page.expect_download() as download:
            page.locator("[data-action=save]").click()
        drawing = Image.open(download.value.path())
        assert drawing.size == (512, 512)

        # A colouring, large; by keyboard.
        tile.focus()
        page.keyboard.press("Enter")
        large = page.locator("dialog canvas")
        assert large.is_visible()
        plain = pixels(large)
        np.testing.assert_allclose(plain.mean(axis=(0, 1)), pixels(tile.locator("canvas")).mean(axis=(0, 1)), atol=2)
        with page.expect_download() as download:
            page.locator("[data-action=save-colouring]").click()
        assert np.array_equal(np.asarray(Image.open(download.value.path()).convert("RGB")), plain)
        with page.expect_download() as download:
            page.locator("[data-action=save-style]").click()
        style = Translator(model).load_style(download.value.path())
        found = shown(page)
        assert torch.equal(style.style.code, found["codes"][:8])
        reduced = drawing.resize((64, 64), Image.Resampling.BILINEAR)
        (colouring,) = model.translate(reduced, style=style.style.code[None])
        wanted = to_model_range(np.asarray(colouring))
        torch.testing.assert_close(found["values"][0, 0].clamp(-1, 1), wanted, atol=0.03, rtol=0)
        assert (style.model, style.direction, style.style.seed) == ("openmoji-lines2color", "a2b", None)
        page.keyboard.press("Escape")
        assert not large.is_visible()
        page.locator("[data-control=lines]").check()
        tile.click()
        assert (pixels(large) <= plain).all() and pixels(large).mean() < plain.mean()


@pytest.mark.slow
def test_undo(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (900, 300), (90, 0, 0)).save(tmp_path / "large.png")
    dots = [[(0.1 + 0.02 * i, 0.5), (0.1 + 0.02 * i, 0.51)] for i in range(33)]
    with opened(root, "some/path/browser.html") as page:
        canvas, hint = page.locator(".pad-canvas"), page.locator(".pad-hint")
        example = pixels(canvas)
        for _ in range(2):  # the first stroke replaces the example, also after it was taken back
            assert hint.is_visible()
            with another(page):
                draw(page, [[(0.1, 0.1), (0.1, 0.11)]])
            assert not hint.is_visible() and (pixels(canvas) == 0).sum() < 0.3 * (example == 0).sum()
            with another(page):
                page.keyboard.press("Control+z")
            assert np.array_equal(pixels(canvas), example)

        draw(page, dots[:3])
        three = pixels(canvas)
        draw(page, dots[3:])
        assert not np.array_equal(pixels(canvas), three)
        for _ in range(40):  # more than the page keeps
            page.keyboard.press("Control+z")
        assert np.array_equal(pixels(canvas), three)

        with another(page):
            page.locator("[data-control=file]").set_input_files(tmp_path / "large.png")
        assert page.evaluate(KEPT) == [512]

        page.locator("[data-action=clear]").click()
        page.locator("[data-tool=eraser]").click()
        draw(page, [[(0.3, 0.3), (0.5, 0.5)]])
        page.wait_for_function(f"document.querySelector('.pad-tile').disabled && {SETTLED}")
        assert pixels(canvas).min() == 255


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(root: Path, scheme: str) -> None:
    with opened(root, "some/path/browser.html", PHONE, touch=True) as page:
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        box = page.locator(".pad-canvas").bounding_box()
        assert box is not None
        with another(page):
            page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        paper = shown(page)["paper"]
        assert (paper[:, :, 0] < 128).sum() == pytest.approx(163, abs=25)  # a dot
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        # The theme would let a wide part scroll by itself.
        right = "Math.max(...[...document.querySelectorAll('.pad *')].map((e) => e.getBoundingClientRect().right))"
        assert page.evaluate(right) <= PHONE[0]
        assert {
            page.locator(f".{name}").evaluate("e => getComputedStyle(e).backgroundColor")
            for name in ("pad-canvas", "pad-tile:first-child canvas")
        } == {"rgb(255, 255, 255)"}


@pytest.mark.slow
def test_the_folder_is_a_site_of_its_own(root: Path, model: mf.MUNIT) -> None:
    with opened(root / "some" / "path" / "_static" / "browser", "") as page:
        found = shown(page)
        image, codes = found["image"].reshape(1, 3, 64, 64), found["codes"].reshape(6, 8)
        torch.testing.assert_close(found["values"], model.translate(image, style=codes), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_another_model(root: Path, tmp_path: Path, small_config: dict[str, Any]) -> None:
    """Grey pictures of another size, without styles."""
    model = mf.UNIT({**small_config, "input_dim_a": 1}).eval()
    weights = tmp_path / "model.safetensors"
    write_portable(weights, model, dtype="fp32")
    folder = shutil.copytree(root / "some" / "path" / "_static" / "browser", tmp_path / "site")
    spec = importlib.util.spec_from_file_location("build", SOURCE / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **module.export(str(weights), folder)}))
    with opened(folder, "") as page:
        found = shown(page)
        assert page.locator(".pad-tile").count() == 1
        assert not page.locator("[data-action=others]").is_visible()
        page.locator(".pad-tile").click()
        assert page.locator("[data-action=save-colouring]").is_visible()
        assert not page.locator("[data-action=save-style]").is_visible()
        image = found["image"].reshape(1, 1, 32, 32)
        torch.testing.assert_close(found["values"], model.translate(image), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_opened_as_a_file(root: Path) -> None:
    with page_of() as page:
        page.goto((root / "some" / "path" / "browser.html").as_uri())
        page.locator("#pad-note").wait_for()
        assert "http.server" in page.locator("#pad-note").inner_text()
        assert not page.locator("#drawing-pad").is_visible()


@pytest.mark.slow
def test_a_model_that_does_not_load(root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(root / "some" / "path" / "_static" / "browser", tmp_path / "site")
    (folder / "model.onnx.gz").write_bytes(b"nothing that is a model")
    with served(folder) as address, page_of() as page:
        page.goto(address)
        page.locator("#pad-note").wait_for()


@pytest.mark.parametrize("npm", ["missing", "failing"])
def test_documentation_without_npm(tmp_path: Path, npm: str) -> None:
    docs = page_tree(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    if npm == "failing":
        (programs / "npm").write_text("#!/bin/sh\necho 'npm error code E404' >&2\necho more >&2\nexit 1\n")
        (programs / "npm").chmod(0o755)
    packages = docs / "browser" / "package.json"
    packages.write_text(re.sub(r'("onnxruntime-web": ")[^"]*', r"\g<1>98.7.6", packages.read_text()))
    folder = docs / "_static" / "browser"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")  # of an earlier build, of other sources
    said = build(folder, docs / "browser", PATH=f"{programs}:/bin" if npm == "failing" else str(programs))
    assert len(said.splitlines()) == 1
    assert ("E404" in said) == (npm == "failing")
    assert sorted(path.name for path in (docs / "_static").iterdir()) == ["site.css"]
    assert sphinx(docs, tmp_path / "html") == ""
    page = (tmp_path / "html" / "browser.html").read_text()
    assert '<script src="_static/browser' not in page and "drawing-pad" not in page
    assert 'class="admonition note"' in page
    assert "98.7.6" in page  # the version of the runtime that npm would bring


def test_the_ratio_is_that_of_the_published_times() -> None:
    measured = json.loads((SOURCE / "measured.json").read_text())
    fastest = {name: times["fastest"] for name, times in measured["milliseconds"].items()}
    assert measured["ratio"] == round(fastest["browser"] / fastest["python"], 1)


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    done = subprocess.run([sys.executable, SOURCE / "build.py", tmp_path], capture_output=True, text=True)
    assert done.returncode and (tmp_path / "precious.txt").exists()


def test_the_lock_names_no_server() -> None:
    text = (SOURCE / "package-lock.json").read_text()
    assert "://" not in text
    packages = json.loads(text)["packages"]
    assert all("integrity" in entry for name, entry in packages.items() if name)
    wanted = json.loads((SOURCE / "package.json").read_text())["dependencies"]
    assert wanted == {name: packages[f"node_modules/{name}"]["version"] for name in wanted}


@pytest.mark.parametrize(
    ("changed", "built"),
    [
        ("docs/browser/pad.js", True),
        ("docs/browser/package-lock.json", True),
        ("docs/browser/.npmrc", True),
        ("docs/pretrained/sketches/quickdraw-cat.png", True),
        ("munit_fast/models/munit.py", True),
        ("munit_fast/reference/networks.py", True),
        ("munit_fast/config/keys.py", True),
        ("docs/browser/measure.py", False),
        ("README.md", False),
    ],
)
def test_make_builds_the_pad_when_a_source_changes(tmp_path: Path, changed: str, built: bool) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make on the PATH")
    (tmp_path / "manifest.json").write_text("{}")  # of a pad that is newer than all sources
    assert (ROOT / changed).exists()
    command = ["make", "--dry-run", f"PAD={tmp_path}", f"--what-if={changed}", "docs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert ("docs/browser/build.py" in done.stdout) == built
