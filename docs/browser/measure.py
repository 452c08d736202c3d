"""Time six colourings of a drawing in headless Chromium and in Python, in turns, and write measured.json.

    python docs/browser/measure.py           # after make docs, on a calm machine

Both use one thread and the same 64 × 64 drawing. In the browser it is the time that the page shows: the call of
onnxruntime-web in the worker, without what is drawn on the screen. The page is opened in new browsers, whose cache is
empty. The load is that of the machine before, since the measurement itself loads a core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import munit_fast as mf
from munit_fast.benchmarks.machine import describe

if TYPE_CHECKING:
    from playwright.sync_api import Page

HERE = Path(__file__).resolve().parent
TRANSLATE = """async () => {
  const { pad } = await import("./pad.js");
  const { image, codes } = pad.shown;
  return (await pad.model.translate(image, codes)).milliseconds;
}"""
IMAGE = "async () => [...(await import('./pad.js')).pad.shown.image]"
SIZES = ("ort.js", "ort.wasm.gz", "model.onnx.gz")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def open_page(page: Page, address: str) -> float:
    """Milliseconds from opening the page to its first colouring."""
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_function("document.querySelector('#drawing-pad').dataset.translations")
    return 1000 * (time.perf_counter() - start)


def summary(times: list[float]) -> dict[str, int]:
    low, median, high = statistics.quantiles(times, n=4)
    quartiles = {"median": median, "lower_quartile": low, "upper_quartile": high}
    return {name: round(value) for name, value in {"fastest": min(times), **quartiles}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drawings", type=int, default=60, help="times each of the two is run")
    parser.add_argument("--openings", type=int, default=5, help="times the page is opened")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    sys.path.insert(0, str(HERE.parents[1] / "tests"))
    from helpers.browser import page_of

    folder = HERE.parent / "_static" / "browser"
    torch.set_num_threads(1)
    model = mf.MUNIT.from_pretrained("openmoji-lines2color")
    styles = torch.randn(6, 8)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    openings = []
    for _ in range(options.openings):
        with page_of() as page:
            openings.append(open_page(page, address))
    times: dict[str, list[float]] = {"browser": [], "python": []}
    with page_of() as page:
        open_page(page, address)
        image = torch.tensor(page.evaluate(IMAGE)).reshape(1, 3, 64, 64)
        for _ in range(5):  # warm up
            page.evaluate(TRANSLATE)
            model.translate(image, style=styles)
        for _ in range(options.drawings):
            times["browser"].append(page.evaluate(TRANSLATE))
            start = time.perf_counter()
            model.translate(image, style=styles)
            times["python"].append(1000 * (time.perf_counter() - start))
        browser = page.context.browser
        assert browser is not None
        chromium = browser.version
    server.shutdown()
    machine = describe(torch.device("cpu"))
    milliseconds = {name: summary(values) for name, values in times.items()}
    fastest = {name: values["fastest"] for name, values in milliseconds.items()}  # rounded, as they are published
    measured: dict[str, Any] = {
        "cpu": machine["cpu"],
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
        "size": image.shape[-1],
        "drawings": options.drawings,
        "milliseconds": milliseconds,
        "ratio": round(fastest["browser"] / fastest["python"], 1),
        "openings": options.openings,
        "opening_milliseconds": summary(openings),
        "megabytes": round(sum((folder / name).stat().st_size for name in SIZES) / 1e6, 1),
        "chromium": chromium.split(".")[0],
        "torch": version("torch").partition("+")[0],
    }
    (HERE / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
