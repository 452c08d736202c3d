"""The wheel: installed into an empty environment, without a compiler on the PATH and without the checkout near.

`make wheel` leaves one in dist/, which is taken if nothing was changed since; else one is built here, without the CUDA
kernels. The environment sees the packages of the one that runs the tests, for torch and the other dependencies, but not
its munit-fast.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(*command: object, **settings: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done


def newest(folder: Path) -> Path | None:
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    found = sorted(folder.glob(f"munit_fast-*-{tag}-*.whl"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [ROOT / "setup.py", ROOT / "pyproject.toml"]
    sources += [path for part in ("csrc", "kernels", "munit_fast") for path in (ROOT / part).rglob("*.[cihp]*")]
    changed = max(path.stat().st_mtime for path in sources if path.suffix not in (".pyc", ".so"))
    made = newest(ROOT / "dist")
    if made is not None and made.stat().st_mtime > changed:
        return made
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("wheel")
    command = ["setup.py", "-q", "build", f"--build-base={folder / 'build'}", "bdist_wheel", f"--dist-dir={folder}"]
    run(sys.executable, *command, cwd=ROOT, env=os.environ | {"MUNIT_FAST_CUDA": "0", "MUNIT_FAST_NATIVE": "1"})
    built = newest(folder)
    assert built is not None
    return built


@pytest.fixture(scope="module")
def place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, as a folder with bin/."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    inside = Path(
        run(folder / "bin/python", "-c", "import sysconfig as s; print(s.get_path('purelib'))").stdout.strip()
    )
    # The path alone: a .pth file in there, as of an editable munit-fast, is not read.
    (inside / "torch_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def command(place: Path, *words: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`munit-fast WORDS` in an empty folder, with nothing but the environment on the PATH."""
    (place / "work").mkdir(exist_ok=True)
    environment = {"PATH": str(place / "bin"), "HOME": str(place / "work"), "OMP_NUM_THREADS": "2"}
    return run(*before, place / "bin/munit-fast", *words, cwd=place / "work", env=environment)


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} <= {"munit_fast", "munit_fast.libs"}
    assert [name for name in names if name.startswith("munit_fast/_C.")]
    assert not any(name.endswith((".cpp", ".missing.txt")) for name in names)
    assert "munit_fast/models/pretrained/openmoji-lines2color.safetensors" in names


def test_doctor_finds_the_compiled_kernels(place: Path) -> None:
    found = json.loads(command(place, "doctor", "--json").stdout)
    assert "error" not in found["native"] and found["native"]["compiler"]
    served = [s for s in found["services"] if s["device"] == "cpu" and s["backend"] == "cpu"]
    assert served and all(s["why_not"] is None and s["auto"] for s in served)
    code = "from munit_fast.ops import native; print(native.module.__file__)"
    file = run(place / "bin/python", "-c", code, cwd=place).stdout
    assert Path(file.strip()).is_relative_to(place)


def test_the_selftest(place: Path) -> None:
    assert "FAIL" not in command(place, "doctor", "--selftest").stdout


def test_translating_without_a_network(place: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare -rn is not permitted here")
    pictures = place / "work/pictures"
    shutil.copytree(ROOT / "docs/pretrained/sketches", pictures)
    words = ["--pretrained", "openmoji-lines2color", "--input", pictures, "--num_style", 2]
    words += ["--output_folder", "out", "--output_only"]
    done = command(place, "translate", *words, before=(unshare, "-rn"))
    assert "slower" not in done.stderr
    assert len(list((place / "work/out").rglob("*.png"))) == 2 * len(list(pictures.glob("*.png"))) > 0


@pytest.mark.parametrize("tag", ["cp311-cp311-win_amd64", "cp39-cp39-linux_x86_64", "cp311-cp311-macosx_14_0_arm64"])
def test_another_platform_s_wheel_fails_in_pip(tag: str, wheel: Path, tmp_path: Path) -> None:
    version = wheel.name.split("-")[1]
    other = shutil.copy(wheel, tmp_path / f"munit_fast-{version}-{tag}.whl")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", f"--target={tmp_path / 'site'}", other]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "is not a supported wheel on this platform" in done.stderr
    assert not (tmp_path / "site").exists()
