"""What comes from elsewhere cannot run code, leave its folder, fill the memory or speak to the terminal."""

from __future__ import annotations

import ast
import io
import resource
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.markers import default_environment
from packaging.requirements import Requirement

from helpers import fuzz_loaders
from helpers.fuzz_inputs import GENERATOR, mutated
from munit_fast.cli.options import print_error
from munit_fast.config import ConfigError, load_config, parse_config
from munit_fast.data import ImageError, read_list
from munit_fast.io.checkpoints import CheckpointError, load_file, load_states
from munit_fast.models.networks import AdaINGen
from munit_fast.train.run_dir import RunDirectory
from munit_fast.train.run_state import find_state
from munit_fast.translate.names import output_names
from munit_fast.utils.text import safe_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / name for name in ("munit_fast", "kernels", "benchmarks", "csrc", "tests")]
SOURCES = [*sorted(path for folder in FOLDERS for path in folder.rglob("*.py")), ROOT / "setup.py"]
# Own modules and traces, written by the test itself: a person's whole-module files must survive `accelerate`.
OWN_PICKLES = {
    "tests/accelerate/test_accelerate.py": 1,
    "tests/accelerate/test_convolutions.py": 1,
    "tests/accelerate/test_networks_of_others.py": 1,
    "tests/helpers/run_exported.py": 1,
    "tests/ops/test_transforms.py": 1,
}


# ---- the tree


def dotted(node: ast.expr) -> str:
    """ "a.b.c" of a plain chain of names, else ""."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Calls that run what a file or string says: line and reason."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            for name in names:
                if name.split(".")[0] in {"marshal", "shelve", "dill", "joblib", "cloudpickle", "jsonpickle"}:
                    yield node.lineno, f"import {name}"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name == "torch.load" and options.get("weights_only") != "True":
            yield node.lineno, "torch.load without weights_only=True"
        own = bool(node.args) and ast.unparse(node.args[0]).startswith("pickle.dumps(")
        if name in {"pickle.load", "pickle.loads", "pickle.Unpickler"} and not own:
            yield node.lineno, f"{name} of something from elsewhere"
        safe = name in {"yaml.safe_load", "yaml.safe_dump"} or options.get("Loader") == "yaml.SafeLoader"
        if name.startswith("yaml.") and not safe:
            yield node.lineno, name
        if options.get("allow_pickle") == "True" and name != "np.save":
            yield node.lineno, f"{name}(allow_pickle=True)"
        if options.get("shell") == "True" or name in {"os.system", "os.popen", "eval", "exec"}:
            yield node.lineno, f"{name} runs text"
        if name.startswith(("torch.hub.load", "torch.jit.load", "torch.package")):
            yield node.lineno, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_from_elsewhere_is_run(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = list(unsafe_calls(ast.parse(path.read_text(encoding="utf-8"))))
    if name == "tests/evaluate/test_external.py":  # its stand-in loads weights as the library does
        found = [(line, reason) for line, reason in found if reason != "torch.hub.load_state_dict_from_url"]
    assert len(found) == OWN_PICKLES.get(name, 0), found


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "pickle.load(file)",
        "pickle.loads(data)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "import marshal",
        "from joblib import load",
        "torch.hub.load('a/b', 'c')",
    ],
)
def test_the_check_sees(code: str) -> None:
    assert list(unsafe_calls(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["torch.load(p, weights_only=True)", "pickle.loads(pickle.dumps(x))", "yaml.safe_load(t)"]
)
def test_the_check_lets_pass(code: str) -> None:
    assert not list(unsafe_calls(ast.parse(code)))


# ---- dependencies


def pins(path: Path) -> list[tuple[Requirement, int]]:
    """Each pin of a requirements file and the number of its hashes."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split("--hash=") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert all(part.startswith("sha256:") for _, *hashes in lines for part in hashes)
    return [(Requirement(line.strip()), len(hashes)) for line, *hashes in lines]


def applies(requirement: Requirement, version: str) -> bool:
    """Whether it is installed on Linux with that Python."""
    python = {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": "linux"}
    return requirement.marker is None or requirement.marker.evaluate(default_environment() | python)


def for_python(requirements: list[Requirement], version: str) -> dict[str, str]:
    """What is installed on Linux with that Python; fails on a package with two pins."""
    found: dict[str, str] = {}
    for requirement in requirements:
        if applies(requirement, version):
            assert requirement.name not in found, requirement.name
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            found[requirement.name] = specifier.version
    return found


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_hashed_requirements_are_the_constraints_but_for_torch(version: str) -> None:
    hashed = pins(ROOT / "requirements/dev.lock")
    assert all(count > 0 for _, count in hashed)
    constraints = for_python([r for r, _ in pins(ROOT / "requirements/constraints.txt")], version)
    assert constraints.pop("torch") == "2.13.0"
    assert for_python([r for r, _ in hashed], version) == constraints


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_every_dependency_is_pinned(version: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = [line for lines in project["project"]["optional-dependencies"].values() for line in lines]
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"], *extras]
    pinned = for_python([r for r, _ in pins(ROOT / "requirements/constraints.txt")], version)
    for requirement in map(Requirement, wanted):
        if requirement.name != "munit-fast" and applies(requirement, version):
            assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


# ---- YAML


def test_yaml_bombs_are_small_errors(tmp_path: Path) -> None:
    letters = "abcdefghij"
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip(letters, letters[1:]))
    with pytest.raises(ConfigError, match=r"2000 .*aliases"):
        parse_config(laughs)
    with pytest.raises(ConfigError, match="contains itself"):
        parse_config("a: &a [*a]")
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_config("[" * 50_000)
    with pytest.raises(ConfigError, match="more than 65536"):
        parse_config("#" * 70_000)
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        load_config("/dev/zero")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        parse_config("batch_size: !!python/object/apply:os.system ['false']")
    with pytest.raises(ConfigError, match="80 more") as many:
        parse_config("".join(f"k{i}: 1\n" for i in range(100)))
    assert len(str(many.value).splitlines()) == 21
    with pytest.raises(ConfigError) as long:
        parse_config("max_iter: " + "x" * 60_000)
    assert len(str(long.value)) < 500
    assert parse_config("gen: &g {dim: 4}\ndis: {<<: *g, n_layer: 2}").dis.dim == 4  # a few aliases are fine


# ---- list files


def test_lists_stay_in_their_folder_unless_allowed(tmp_path: Path) -> None:
    root, listing = tmp_path / "images", tmp_path / "list.txt"
    (root / "sub").mkdir(parents=True)
    for path in (root / "a.png", tmp_path / "secret.png"):
        path.write_bytes(b"x")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "near.png").symlink_to("a.png")
    (root / "up").symlink_to(tmp_path)

    def read(*names: str, **options: Any) -> list[Path]:
        listing.write_text("\n".join(names))
        return read_list(listing, root, **options)

    assert read("a.png", "near.png") == [root / "a.png", root / "near.png"]
    for name, words in {
        "../secret.png": "out of .*--allow_outside",
        str(tmp_path / "secret.png"): "out of",
        "link.png": "link out of .*--allow_outside",
        "up/secret.png": "link out of",
        "a\0.png": r"no file a\\x00",
        "none\x1b[31m.png": r"no file none\\x1b",
    }.items():
        with pytest.raises(ImageError, match=f"line 2: .*{words}" if "no file" not in words else words) as refused:
            read("a.png", name)
        assert str(refused.value).isprintable()
    outside = read("../secret.png", "link.png", str(tmp_path / "secret.png"), allow_outside=True)
    assert outside == [tmp_path / "secret.png", root / "link.png", tmp_path / "secret.png"]
    (tmp_path / "alias").symlink_to(root)  # the folder itself may be a link
    listing.write_text("a.png")
    assert read_list(listing, tmp_path / "alias") == [tmp_path / "alias" / "a.png"]


# ---- checkpoints


def test_checkpoint_bombs(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "plain.pt")
    load_file(tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    assert (tmp_path / "bomb.pt").stat().st_size < 20_000
    with pytest.raises(CheckpointError, match=r"unpack to \d+ bytes"):
        load_file(tmp_path / "bomb.pt")


def test_tensors_without_memory_are_refused(tmp_path: Path) -> None:
    """A file of 2 kB whose tensors would take 1 GiB wherever they are copied or hashed."""
    wide = torch.zeros(1).expand(2**28)
    path = tmp_path / "resume_00000001.pt"
    torch.save({"iterations": 1, "networks": [{"gen_a": {"w": wide}}], "checksum": "0"}, path)
    assert path.stat().st_size < 3000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for load in (load_file, lambda _: find_state(tmp_path)):
        with pytest.raises(CheckpointError, match=r"\[268435456\] .*storage"):
            load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # kB
    torch.save({"view": torch.arange(6.0).view(2, 3).T[1:], "none": torch.empty(0, 5)}, path)  # of their own memory
    assert load_file(path)["view"].tolist() == [[1, 4], [2, 5]]


@pytest.mark.parametrize("kind", ["sparse", "complex", "meta", "quantized"])
def test_tensors_that_no_parameter_can_take(tmp_path: Path, kind: str) -> None:
    nets = [AdaINGen(3, GENERATOR) for _ in range(2)]
    states = [dict(net.state_dict()) for net in nets]
    name = next(iter(states[1]))
    value = states[1][name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        makers = {
            "sparse": value.to_sparse,
            "complex": lambda: value.to(torch.complex64),
            "meta": lambda: value.to("meta"),
            "quantized": lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        }
        states[1][name] = makers[kind]()
        torch.save({"a": {k: v + 1 for k, v in states[0].items()}, "b": states[1]}, tmp_path / "gen.pt")
        before = [value.clone() for value in nets[0].state_dict().values()]
        with pytest.raises(CheckpointError, match=r"'b' .*plain tensors"):
            load_states("gen.pt", load_file(tmp_path / "gen.pt"), *nets)
    assert all(torch.equal(x, y) for x, y in zip(before, nets[0].state_dict().values()))


def test_names_in_a_checkpoint_do_not_speak_to_the_terminal(tmp_path: Path) -> None:
    nets = [AdaINGen(3, GENERATOR) for _ in range(2)]
    states = [dict(net.state_dict()) for net in nets]
    torch.save({"a": states[0] | {"x\x1b]0;title\x07": torch.zeros(1)}, "b": states[1]}, tmp_path / "gen.pt")
    with pytest.raises(CheckpointError, match=r"x\\x1b\]0;title\\x07 .*expected") as refused:
        load_states("gen.pt", load_file(tmp_path / "gen.pt"), *nets)
    assert str(refused.value).isprintable()


# ---- names and messages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("edges2shoes_folder", "edges2shoes_folder"),
        ("Ünïcode 名前.v2", "Ünïcode 名前.v2"),
        ("..", "_"),
        ("", "_"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("a\nb\x1b[31m\u202egnp", "a_b_[31m_gnp"),
        ('a<b>:"c"|?*\\', "a_b___c_____"),
        ("bytes\udcff", "bytes_"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("trailing. ", "trailing"),
        ("名" * 100, "名" * 66),
    ],
)
def test_safe_names(text: str, expected: str) -> None:
    assert safe_name(text) == expected
    assert safe_name(expected) == expected


def test_a_configuration_called_dots_stays_in_its_folder(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path, Path("...yaml").stem)  # ".."
    assert folder.root == tmp_path / "outputs" / "_"
    assert folder.logs == tmp_path / "logs" / "_"


def test_translations_are_named_plainly_and_apart() -> None:
    names = output_names(["a?.png", "a*.png", "ok.png", "s\n/b\x1b.png", "x" * 240 + ".png", "a_.png"])
    assert names[2:4] == ["ok", "s_/b_"]
    assert len({name.lower() for name in names}) == len(names)
    assert all(name.isprintable() and len(name.encode()) <= 204 and ".." not in name for name in names)


def test_messages_do_not_speak_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("no file \x1b]0;title\x07 é\nsecond line")
    assert capsys.readouterr().err == "munit-fast: no file \\x1b]0;title\\x07 é\nmunit-fast: second line\n"


# ---- fuzzing, a little of it


LOADERS = ["config", "list", "checkpoint", "foreign", "portable", "folder", "graph", "image", "upload", "style"]
LOADERS += ["tiff", "png", "frames", "netpbm", "array", "nifti", "dicom", "zip", "tar", "dataset", "slide"]


@pytest.mark.parametrize("loader", LOADERS)
def test_hostile_inputs(loader: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "tests" / "helpers" / "fuzz_loaders.py"),
        "--loader",
        loader,
        "--inputs",
        "300",
    ]
    done = subprocess.run([*command, "--folder", str(tmp_path / "fuzz")], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.splitlines()[-1].split()[1]) >= 300  # after what onnxruntime prints


def test_the_fuzzer_notices(tmp_path: Path) -> None:
    def careless(folder: Path) -> Any:
        def run(data: bytes) -> None:
            io.BytesIO(data).read().decode("utf-8")

        return run

    fuzz_loaders.LOADERS["careless"] = (careless, lambda _: mutated([b"abc"]))
    try:
        with pytest.raises(UnicodeDecodeError):
            fuzz_loaders.fuzz("careless", 500, tmp_path / "fuzz")
    finally:
        del fuzz_loaders.LOADERS["careless"]
