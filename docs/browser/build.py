"""Write the folder of the drawing pad: the page's scripts, the model as ONNX, and onnxruntime-web from npm.

    python docs/browser/build.py docs/_static/browser
    python docs/browser/build.py my-site --pretrained my-model.safetensors

The folder works on any static server, from any path. Where npm is missing or fails, one line says so, and there is no
folder: the documentation is built without the pad.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "node_modules" / "onnxruntime-web"
SKETCHES = HERE.parent / "pretrained" / "sketches"
PRETRAINED = "openmoji-lines2color"
SCRIPTS = ("start.js", "pad.js", "drawing.js", "input.js", "worker.js", "pad.css")
EXAMPLES = {"house": "freehand-house", "face": "open-peeps-head", "cat": "quickdraw-cat", "fish": "quickdraw-fish"}
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<body style="max-width: 48rem; margin: 1rem auto; padding: 0 1rem; font-family: system-ui, sans-serif">
<h1>{title}</h1>
{pad}
</body>
</html>
"""


class NpmError(Exception):
    """npm is not there, or could not install what package-lock.json names."""


def install() -> None:
    """Let npm install what package-lock.json names, unless it did.

    Raises:
        NpmError: npm is missing or failed.
    """
    lock, installed = HERE / "package-lock.json", HERE / "node_modules" / ".package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return
    npm = shutil.which("npm")
    if npm is None:
        raise NpmError("npm is not on the PATH")
    try:
        done = subprocess.run([npm, "ci"], cwd=HERE, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        raise NpmError("npm ci took more than ten minutes") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise NpmError(f"npm ci failed: {lines[0] if lines else f'exit status {done.returncode}'}")
    installed.touch()


def pack(data: bytes, path: Path) -> None:
    """Compressed, the same bytes at every build: most static servers send files as they are."""
    path.write_bytes(gzip.compress(data, 9, mtime=0))


def export(pretrained: str, folder: Path) -> dict[str, object]:
    """Write the a2b half of a pretrained model, and return what the manifest says of it."""
    from munit_fast.export import export_model
    from munit_fast.models import UNIT, from_pretrained

    model = from_pretrained(pretrained)
    with TemporaryDirectory() as exported:
        export_model(model, Path(exported, "model.onnx"), format="onnx", directions=["a2b"])
        pack(Path(exported, "model-a2b.onnx").read_bytes(), folder / "model.onnx.gz")
    assert model.loaded is not None
    return {
        "name": model.loaded.stem,
        "model": "model.onnx.gz",
        "size": model.config.short_side("a"),
        "channels": model.config.input_dim_a,
        "style_dim": 0 if isinstance(model, UNIT) else model.config.gen.style_dim,
        "about": {name: model.about[name] for name in ("licence", "attribution") if name in model.about},
    }


def write(pretrained: str, folder: Path) -> None:
    """Fill an empty folder.

    Raises:
        NpmError: npm is missing or failed.
    """
    install()
    dist = PACKAGE / "dist"
    # The smallest of the builds that compute float32 on the CPU: without WebGL, WebGPU and WebNN. Its threads stay off.
    script = (dist / "ort.wasm.bundle.min.mjs").read_text()
    (folder / "ort.js").write_text(re.sub(r"\n//# sourceMappingURL=.*", "", script))  # servers know what .js is
    pack((dist / "ort-wasm-simd-threaded.wasm").read_bytes(), folder / "ort.wasm.gz")
    for name in SCRIPTS:
        shutil.copyfile(HERE / name, folder / name)
    for name in EXAMPLES.values():
        shutil.copyfile(SKETCHES / f"{name}.png", folder / f"{name}.png")
    pad = (HERE / "pad.html").read_text().replace("_static/browser/", "")
    (folder / "index.html").write_text(PAGE.format(title="Drawing pad", pad=pad))
    manifest = {
        **export(pretrained, folder),
        "runtime": "ort.wasm.gz",
        "examples": [{"name": name, "file": f"{file}.png"} for name, file in EXAMPLES.items()],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write; an earlier pad there goes")
    parser.add_argument("--pretrained", default=PRETRAINED, help="the bundled model, or a file of munit-fast export")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if folder.exists() and not (folder / "manifest.json").exists() and any(folder.iterdir()):
        parser.error(f"{folder} holds other files; give another folder")
    shutil.rmtree(folder, ignore_errors=True)  # also where nothing takes its place: it would be of other sources
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".browser-") as made:
        try:
            write(options.pretrained, Path(made))
        except NpmError as error:
            print(f"the documentation is built without the drawing pad: {error}", file=sys.stderr)
            return
        Path(made).chmod(0o755)
        shutil.copytree(made, folder)


if __name__ == "__main__":
    main()
