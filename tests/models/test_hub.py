"""Models as folders and as repositories of the Hugging Face Hub, which a server on loopback plays."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import munit_fast as mf
from helpers.hub_server import HubServer, environment, hub_server, use
from munit_fast.io.atomic import FileWriteError
from munit_fast.models import hub, model_folder
from munit_fast.models.munit import from_pretrained
from munit_fast.models.portable import write_portable

ROOT = Path(__file__).resolve().parents[2]
METRICS = ROOT / "docs" / "pretrained" / "openmoji-lines2color" / "metrics.json"
SMALL: dict[str, Any] = {
    "gen": {"dim": 4, "mlp_dim": 8, "style_dim": 3, "n_res": 1, "n_downsample": 1},
    "dis": {"dim": 4, "n_layer": 2, "num_scales": 2},
    "crop_image_height": 32,
    "crop_image_width": 32,
    "new_size": 32,
}
FILES = {"config.json", "model.safetensors", "README.md"}


def make(kind: type[Any] = mf.MUNIT, seed: int = 0, **values: Any) -> Any:
    torch.manual_seed(seed)
    model = kind(SMALL | values)
    model.about = {"licence": "CC BY 4.0", "attribution": "A <b>person</b> | and another"}
    return model


def same(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as running:
        use(running.endpoint, home, monkeypatch)
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def refusal(
    call: Callable[..., Any], *arguments: Any, error: type[Exception] = mf.CheckpointError, **options: Any
) -> str:
    """The message of the error that a call raises: one line that a terminal cannot mistake for anything else."""
    with pytest.raises(error) as refused:
        call(*arguments, **options)
    assert error is not ValueError or not isinstance(refused.value, mf.CheckpointError)  # which is a ValueError too
    assert str(refused.value).isprintable()
    return str(refused.value)


class TestFolders:
    @pytest.mark.parametrize("kind", [mf.MUNIT, mf.UNIT])
    def test_round_trip(self, kind: type[Any], tmp_path: Path) -> None:
        model = make(kind, data_root="/secret/place")
        saved = tmp_path / "new" / "folder"
        model.save_pretrained(saved)
        assert {path.name for path in saved.iterdir()} == FILES
        assert not any(b"secret" in path.read_bytes() for path in saved.iterdir())
        for load in (kind.from_pretrained, from_pretrained):
            for name in (saved, str(saved), saved / "model.safetensors"):
                loaded = load(name, impl="reference")
                assert type(loaded) is kind and same(model, loaded) and not loaded.training
                assert loaded.about == model.about and loaded.loaded == saved / "model.safetensors"
        other = mf.UNIT if kind is mf.MUNIT else mf.MUNIT
        assert f"{kind.trainer}.from_pretrained" in refusal(other.from_pretrained, saved)

    def test_half_precision_and_notes(self, tmp_path: Path) -> None:
        model = make()
        model.save_pretrained(tmp_path / "half", dtype="fp16", about={"licence": "MIT", "training": "none"})
        loaded = mf.MUNIT.from_pretrained(tmp_path / "half")
        assert same(model.half(), loaded.half()) and not same(make(), loaded)
        assert loaded.about == model.about | {"licence": "MIT", "training": "none"}
        for options in (
            {"dtype": "fp8"},
            {"about": {"config": "x"}},
            {"about": {"licence": 3}},
            {"metrics": {"entries": 3}},
        ):
            refusal(model.save_pretrained, tmp_path / "never", **options, error=ValueError)
            assert not (tmp_path / "never").exists()

    def test_no_package_is_needed(self, tmp_path: Path) -> None:
        code = (
            "import sys; sys.modules['huggingface_hub'] = None\n"
            "import munit_fast as mf\n"
            f"model = mf.MUNIT({SMALL!r}); model.save_pretrained('f', metrics={str(METRICS)!r})\n"
            "mf.MUNIT.from_pretrained('f'); mf.MUNIT.from_pretrained('openmoji-lines2color')\n"
            "for call in (mf.MUNIT.from_pretrained, model.push_to_hub):\n"
            "    try: call('owner/name')\n"
            "    except ImportError as error: print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        lines = done.stdout.splitlines()
        assert len(lines) == 2 and all("munit-fast[hub]" in line for line in lines), done.stderr

    def test_card(self, tmp_path: Path) -> None:
        from huggingface_hub import ModelCard, ModelCardData

        make().save_pretrained(tmp_path / "f", metrics=METRICS)
        path = tmp_path / "f" / "README.md"
        card = ModelCard.load(path)
        assert card.data.license == "cc-by-4.0" and card.data.library_name == "munit-fast"
        assert card.data.pipeline_tag == "image-to-image" and {"munit", "image-to-image"} <= set(card.data.tags)
        entries = json.loads(METRICS.read_text())["entries"]
        results = card.data.eval_results
        found = {(r.dataset_config, r.metric_type): r.metric_value for r in results}
        assert found == {tuple(entry["key"].rsplit(".", 1)): entry["value"] for entry in entries}
        # What the package writes of it reads as the same again.
        again = ModelCardData(**ModelCard(str(card)).data.to_dict())
        assert again.to_dict() == card.data.to_dict() and len(again.to_dict()["model-index"]) == 1
        assert [vars(r) for r in ModelCard(str(card)).data.eval_results] == [vars(r) for r in results]
        text = path.read_text("utf-8")
        assert "A &lt;b>person" in text and "<b>" not in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 5) for line in rows)
        assert sum("SSIM ↑" in line for line in rows) == 2
        make().save_pretrained(tmp_path / "g", metrics=json.loads(METRICS.read_text()))
        assert ModelCard.load(tmp_path / "g" / "README.md").data.eval_results == results

    @pytest.mark.parametrize(
        ("licence", "expected"),
        [
            (None, {"license": "unknown"}),
            ("Apache-2.0", {"license": "apache-2.0"}),
            ("CC BY-NC-SA 4.0 (not for commercial use)", {"license": "cc-by-nc-sa-4.0"}),
            ("ours: ask: first", {"license": "other", "license_name": "ours"}),
            ("---", {"license": "other", "license_name": "other"}),
            ("名前\n---\nlicense: mit", {"license": "other", "license_name": "license"}),
        ],
    )
    def test_licences(self, licence: str | None, expected: dict[str, str], tmp_path: Path) -> None:
        from huggingface_hub import ModelCard

        model = make()
        model.about = {} if licence is None else {"licence": licence}
        model.save_pretrained(tmp_path / "f")
        data = ModelCard.load(tmp_path / "f" / "README.md").data.to_dict()
        assert {key: value for key, value in data.items() if "license" in key} == expected

    @pytest.mark.parametrize(
        "content",
        ["", "[]", '{"entries": [{}]}', '{"entries": [{"key": "a.b", "value": NaN}]}', "[" * 10**5, "x" * 2**21],
    )
    def test_what_are_no_metrics(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "m.json").write_text(content)
        save = make().save_pretrained
        assert "m.json" in refusal(save, tmp_path / "f", metrics=tmp_path / "m.json", error=ValueError)
        assert not (tmp_path / "f").exists()

    def test_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is written to, not replaced: a process whose folder is gone cannot go on."""
        empty = tmp_path / "empty"
        empty.mkdir(mode=0o750)
        before = empty.stat()
        monkeypatch.chdir(empty)
        make().save_pretrained(".")
        after = os.stat(".")
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode) and set(os.listdir()) == FILES
        assert same(mf.MUNIT.from_pretrained("."), make())

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
    def test_named_pipes_are_not_waited_for(self, folder: Path) -> None:
        for name in ("README.md", "config.json"):
            (folder / name).unlink()
            os.mkfifo(folder / name)
        code = (
            "import sys, munit_fast as mf\n"
            "try: mf.MUNIT.from_pretrained(sys.argv[1])\n"
            "except mf.CheckpointError as error: print(error)\n"
            f"try: mf.MUNIT({SMALL!r}).save_pretrained(sys.argv[1])\n"
            "except OSError as error: print(error)\n"
        )
        command = [sys.executable, "-W", "ignore", "-c", code, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        lines = done.stdout.splitlines()
        assert len(lines) == 2 and all("config.json" in line and "JSON" not in line for line in lines), done.stderr

    def test_a_folder_in_place_of_a_file(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        (folder / "config.json").mkdir()
        message = refusal(mf.MUNIT.from_pretrained, folder)
        assert "config.json: " in message and "folder" in message and "JSON" not in message

    def test_notes_are_kept_whole_or_refused(self, tmp_path: Path) -> None:
        model = make()
        long = {"attribution": "é" * 2000, "a.b-c_d 9": " x" * 1000}
        notes = {f"note {i}": "x" for i in range(16)}
        model.save_pretrained(tmp_path / "kept", about=long | notes)
        about = mf.MUNIT.from_pretrained(tmp_path / "kept").about
        assert about == model.about | notes | {key: text.strip() for key, text in long.items()}
        assert "é" * 2000 in (tmp_path / "kept" / "README.md").read_text("utf-8")
        for bad in (
            {"attribution": "x" * 2001},
            {f"note {i}": "x" for i in range(19)},
            {"a\x1b[2J": "x"},
            {"a\n": "x"},
            {"": "x"},
            {"é": "x"},
            {"x" * 65: "x"},
        ):
            assert refusal(model.save_pretrained, tmp_path / "never", about=bad, error=ValueError).startswith("about: ")
            assert not (tmp_path / "never").exists()

    def test_the_card_names_what_can_be_loaded(self, folder: Path) -> None:
        assert 'from_pretrained("saved")' not in (folder / "README.md").read_text("utf-8")

    def test_an_edited_card_is_kept(self, folder: Path) -> None:
        card = folder / "README.md"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make().save_pretrained(folder, about={"licence": "MIT"})
        assert "license: mit" in card.read_text()
        for text in (card.read_text().replace("# saved", "# Mine"), "mine", "\udcff"):
            card.write_text(text, errors="surrogateescape")
            before = card.read_bytes()
            with pytest.warns(UserWarning, match=r"README\.md"):
                make(seed=1).save_pretrained(folder)
            assert card.read_bytes() == before and same(make(seed=1), mf.MUNIT.from_pretrained(folder))

    def test_an_interruption_leaves_the_old_model_or_the_new(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whichever write is the last one: what can be loaded is one of the two, never a mixture."""
        wide = make(seed=1, gen=SMALL["gen"] | {"dim": 8})
        writers = {name: getattr(model_folder, name) for name in ("write_portable", "atomic_write_bytes")}
        seen = []
        for last in range(3):
            make().save_pretrained(folder)
            left = iter(range(last))

            def counted(write: Callable[..., None], left: Iterator[int] = left) -> Callable[..., None]:
                def run(path: Path, *args: Any, **kwargs: Any) -> None:
                    if next(left, None) is None:
                        raise FileWriteError(f"cannot write {path}: No space left on device")
                    write(path, *args, **kwargs)

                return run

            with monkeypatch.context() as patch:
                for name, write in writers.items():
                    patch.setattr(model_folder, name, counted(write))
                refusal(wide.save_pretrained, folder, error=FileWriteError)
            if last == 1:
                message = refusal(mf.MUNIT.from_pretrained, folder)
                seen.append("neither" if "gen.dim is 8 in the header and 4 in config.json" in message else message)
                continue
            loaded = mf.MUNIT.from_pretrained(folder)
            seen.append("old" if same(loaded, make()) else "new" if same(loaded, wide) else "mixture")
        assert seen == ["old", "neither", "new"]

    def test_a_new_folder_appears_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise FileWriteError("cannot write: No space left on device")

        monkeypatch.setattr(model_folder, "write_portable", fail)
        with pytest.raises(FileWriteError):
            make().save_pretrained(tmp_path / "new")
        assert not list(tmp_path.iterdir())
        (tmp_path / "file").touch()
        refusal(make().save_pretrained, tmp_path / "file", error=ValueError)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda c: None, "no config.json"),
            (lambda c: "", "JSON"),
            (lambda c: "[" * 50_000, "levels"),
            (lambda c: '"' + '\\"' * 400_000, "JSON"),
            (lambda c: "\udcff", "JSON"),
            (lambda c: json.dumps(c)[:-1] + ', "trainer": "UNIT"}', "twice"),
            (lambda c: json.dumps(c | {"x": float("nan")}), "NaN"),
            (lambda c: json.dumps(c | {"x": " " * 10**6}), "1000000"),
            (lambda c: json.dumps(c)[:-1] + ', "x": ' + "9" * 10_000 + "}", "JSON"),
            (lambda c: "[1]", "some other program"),
            (lambda c: json.dumps({"_class_name": "UNet2DModel"}), "diffusers"),
            (lambda c: json.dumps({"model_type": "bert", "architectures": []}), "transformers"),
            (lambda c: json.dumps({"library_name": "other\x1b[31m\nlib"}), r"other\\x1b\[31m lib"),
            (lambda c: json.dumps(c | {"trainer": "UNIT"}), "trainer is MUNIT in the header and UNIT"),
            (lambda c: json.dumps(c | {"trainer": ["MUNIT"]}), "trainer must be"),
            (lambda c: json.dumps(c | {"config": 3}), "config must be"),
            (lambda c: json.dumps(c | {"config": {"gen": {"dim": "\x1b"}, "lr": -1}}), r"lr: .*; .*gen\.dim: "),
            (
                lambda c: json.dumps(c | {"config": c["config"] | {"gen": c["config"]["gen"] | {"dim": 8}}}),
                r"gen\.dim is 4",
            ),
            (lambda c: json.dumps(c | {"config": c["config"] | {"new_size": 64}}), "new_size is 32"),
            (
                lambda c: json.dumps(
                    c | {"config": c["config"] | {"lr": 1, "new_size": 64, "gen": c["config"]["gen"] | {"n_res": 2}}}
                ),
                r"gen\.n_res is 1",
            ),
            (lambda c: json.dumps(c | {"config": c["config"] | {"lr": 1, "input_dim_b": 1}}), "input_dim_b is 3"),
            (lambda c: json.dumps(c)[:-1] + ', "x": -' + "9" * 5000 + "}", r"JSON \((?!.*set_int).*digits"),
        ],
    )
    def test_configurations_that_are_refused(
        self, folder: Path, change: Callable[[Any], str | None], words: str
    ) -> None:
        path = folder / "config.json"
        text = change(json.loads(path.read_text()))
        path.unlink()
        if text is not None:
            path.write_text(text, errors="surrogateescape")
        begin = time.process_time()
        message = refusal(mf.MUNIT.from_pretrained, folder)
        assert re.search(words, message) and str(folder) in message and len(message) < 2000
        assert time.process_time() - begin < 10

    def test_how_it_was_trained_may_differ(self, folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        values["config"] |= {"lr": 0.5, "gan_w": 2}
        path.write_text(json.dumps(values))
        assert same(mf.MUNIT.from_pretrained(folder), make())

    def test_unknown_entries_are_left_alone(self, folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"_commit_hash": "0", "brackets": "[{" * 99}))
        (folder / "modeling.py").write_text("raise SystemExit")
        assert same(mf.MUNIT.from_pretrained(folder), make())

    def test_weights_that_are_refused(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-10])
        assert "safetensors" in refusal(mf.MUNIT.from_pretrained, folder)
        save_file({"weight": torch.zeros(2)}, path, {"format": "pt"})
        assert "format" in refusal(mf.MUNIT.from_pretrained, folder)
        header = {"format": "munit-fast generators 1", "trainer": "MUNIT", "config": "lr: -1\ngen: {dim: x}"}
        save_file({}, path, header)
        assert re.search(r"lr: .*; .*gen\.dim: ", refusal(mf.MUNIT.from_pretrained, folder))
        write_portable(path, make(gen=SMALL["gen"] | {"n_res": 2}))
        assert "gen.n_res is 2" in refusal(mf.MUNIT.from_pretrained, folder)
        path.unlink()
        torch.save({}, folder / "pytorch_model.bin")
        assert "pytorch_model.bin" in refusal(mf.MUNIT.from_pretrained, folder)

    def test_options_of_the_hub_are_refused(self, folder: Path) -> None:
        for name in (folder, str(folder / "model.safetensors"), "openmoji-lines2color"):
            for options in ({"revision": "main"}, {"token": "x"}, {"cache_dir": folder}, {"force_download": True}):
                assert next(iter(options)) in refusal(mf.MUNIT.from_pretrained, name, **options, error=ValueError)
            assert mf.MUNIT.from_pretrained(name, local_files_only=True, force_download=False)


class TestHub:
    def test_push_and_load(self, server: HubServer, home: Path) -> None:
        from huggingface_hub import ModelCard

        model = make()
        address = model.push_to_hub("me/first", metrics=METRICS, token="hf_secret", about={"licence": "MIT"})
        repository = server.repositories["me/first"]
        sha = repository.refs["main"]
        assert address == f"{server.endpoint}/me/first/commit/{sha}" and not repository.private
        assert set(repository.commits[sha]) == FILES | {".gitattributes"}
        assert ("/api/repos/create", "Bearer hf_secret") in server.tokens
        loaded = mf.MUNIT.from_pretrained("me/first")
        assert same(model, loaded) and loaded.about == model.about | {"licence": "MIT"}
        assert loaded.loaded == home / "hub" / "models--me--first" / "snapshots" / sha / "model.safetensors"
        card = ModelCard.load("me/first")
        assert card.data.license == "mit" and len(card.data.eval_results) == 15
        assert 'from_pretrained("me/first")' in card.text and card.data.model_name == "me/first"
        config = json.loads(repository.commits[sha]["config.json"])
        assert config["trainer"] == "MUNIT" and config["config"]["gen"]["dim"] == 4

    def test_push_options(self, server: HubServer) -> None:
        make().push_to_hub("me/private", private=True, token="t", dtype="fp16")
        repository = server.repositories["me/private"]
        assert repository.private
        assert "private" in refusal(mf.MUNIT.from_pretrained, "me/private")
        first = repository.refs["main"]
        card = repository.commits[first]["README.md"]
        make(seed=1).push_to_hub("me/private", token="t", create_pr=True, commit_message="better")
        assert repository.refs["main"] == first and "refs/pr/1" in repository.refs
        repository.refs["next"] = first
        make(mf.UNIT, seed=2).push_to_hub("me/private", token="t", branch="next", ignore_patterns="README.md")
        assert repository.refs["main"] == first and repository.commits[repository.refs["next"]]["README.md"] == card
        unit = from_pretrained("me/private", token="t", revision="next")
        assert type(unit) is mf.UNIT and same(unit, make(mf.UNIT, seed=2))
        proposed = mf.MUNIT.from_pretrained("me/private", token="t", revision="refs/pr/1")
        assert same(proposed, make(seed=1))

    def test_push_refusals(self, server: HubServer) -> None:
        model = make()
        for name in ("name", "a/b/c", "a/..", "-a/b", "a/b--c", "a/b.git", "a/\x1bb", "../b", "a/" + "b" * 99, 3):
            refusal(model.push_to_hub, name, error=ValueError)
        refusal(model.push_to_hub, "me/x", branch="../x", error=ValueError)
        refusal(model.push_to_hub, "me/x", metrics={}, error=ValueError)
        model.gen_a.enc_content.model[0].conv.weight.data[0] = torch.nan
        refusal(model.push_to_hub, "me/x", error=ValueError)
        assert not server.requests
        assert "gone" in refusal(make().push_to_hub, "me/x", branch="gone", token="t")
        server.refuse_push = True
        message = refusal(make().push_to_hub, "me/x", token="hf_secret")
        assert message.startswith("me/x: ") and "403" in message and "hf_secret" not in message

    def test_revisions(self, server: HubServer, folder: Path, tmp_path: Path) -> None:
        repository = server.add_folder("me/two", folder)
        first = repository.refs["main"]
        make(seed=1).save_pretrained(tmp_path / "second")
        second = repository.commit({path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()})
        repository.refs["v1"] = first
        for revision, seed in ((None, 1), ("main", 1), ("v1", 0), (first, 0), (second, 1)):
            assert same(mf.MUNIT.from_pretrained("me/two", revision=revision), make(seed=seed))
        before = len(server.requests)
        assert same(mf.MUNIT.from_pretrained("me/two", revision=first), make())
        assert len(server.requests) == before  # a commit is what it was
        assert "'v2'" in refusal(mf.MUNIT.from_pretrained, "me/two", revision="v2")
        for revision in ("../../x", "/x", "", "a b", "-x", "x/../../y", "\x1b", "x" * 300):
            refusal(mf.MUNIT.from_pretrained, "me/two", revision=revision, error=ValueError)

    def test_both_files_are_of_one_commit(
        self, server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A push between the two downloads: what was begun is finished."""
        repository = server.add_folder("me/moving", folder)
        read = hub.read_config

        def pushed(path: Path) -> Any:
            make(seed=1).push_to_hub("me/moving", token="t")
            return read(path)

        monkeypatch.setattr(hub, "read_config", pushed)
        assert same(mf.MUNIT.from_pretrained("me/moving"), make())
        monkeypatch.undo()
        assert len(repository.commits) == 2

    def test_cache_and_offline(self, folder: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        with hub_server() as server:
            use(server.endpoint, home, monkeypatch)
            server.add_folder("me/kept", folder)
            message = refusal(mf.MUNIT.from_pretrained, "me/kept", local_files_only=True)
            assert "cache" in message and not server.requests
            assert same(mf.MUNIT.from_pretrained("me/kept"), make())
            downloads = [path for method, path in server.requests if method == "GET"]
            assert [path.split("/")[-1] for path in downloads if "resolve" in path] == ["config.json"]
            assert sum("/objects/" in path for path in downloads) == 1
            server.requests.clear()
            assert same(mf.MUNIT.from_pretrained("me/kept", local_files_only=True), make())
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            assert same(mf.MUNIT.from_pretrained("me/kept"), make())
            for options in ({}, {"local_files_only": True}):
                refusal(mf.MUNIT.from_pretrained, "me/kept", force_download=True, **options, error=ValueError)
            assert not server.requests
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            assert same(mf.MUNIT.from_pretrained("me/kept"), make())
            assert {method for method, _ in server.requests} <= {"HEAD"}  # nothing is fetched twice
            server.requests.clear()
            mf.MUNIT.from_pretrained("me/kept", force_download=True)
            assert sum(method == "GET" for method, _ in server.requests) == 2
            (tmp_path / "file").touch()
            assert str(tmp_path / "file") in refusal(mf.MUNIT.from_pretrained, "me/kept", cache_dir=tmp_path / "file")
            mf.MUNIT.from_pretrained("me/kept", cache_dir=tmp_path / "elsewhere")
            assert (tmp_path / "elsewhere" / "models--me--kept").is_dir()
        assert same(mf.MUNIT.from_pretrained("me/kept"), make())  # the server has stopped
        message = refusal(mf.MUNIT.from_pretrained, "me/unseen")
        assert "me/unseen" in message and "Connect" in message

    def test_a_token_does_not_leave_the_hub(self, server: HubServer, folder: Path) -> None:
        server.add_folder("me/large", folder).private = True
        mf.MUNIT.from_pretrained("me/large", token="hf_secret")
        sent = dict(server.tokens)
        assert all(token == "Bearer hf_secret" for path, token in sent.items() if "resolve" in path)
        assert [token for path, token in sent.items() if path.startswith("/objects/")] == [None]

    def test_nothing_is_asked_of_the_hub_for_what_is_here(
        self, server: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        os.makedirs("owner")
        folder.rename("owner/name")
        server.add_folder("owner/name", Path("owner/name"))
        for name in ("openmoji-lines2color", "owner/name", Path("owner/name"), "owner/name/model.safetensors"):
            mf.MUNIT.from_pretrained(name)
        Path("owner/broken").symlink_to("nowhere")
        Path("owner/file").touch()
        names: list[Any] = [
            "owner/broken",
            "owner/file",
            "name",
            "./a/b",
            "../a/b",
            "a/b/",
            "/a/b",
            "a/b/c",
            "~/b",
            "",
            "a\0/b",
        ]
        names += ["https://huggingface.co/a/b", "a\\b", "a/b\n", "é/b", "a/" + "b" * 5000 + "/", Path("a/b"), "a/b c"]
        for name in names:
            refusal(mf.MUNIT.from_pretrained, name, error=ValueError)
        assert "no such file" in refusal(mf.MUNIT.from_pretrained, "owner/missing.safetensors")
        for name in ("a/b--c", "a/b..c", "a/b.git", "a/b.", "a/" + "b" * 200):  # of the form, but no name on the Hub
            assert refusal(mf.MUNIT.from_pretrained, name, error=ValueError).startswith("name ")
        for name in (None, 5, b"a/b", ["a/b"]):
            assert type(name).__name__ in refusal(mf.MUNIT.from_pretrained, name, error=ValueError)
        assert "revision" in refusal(mf.MUNIT.from_pretrained, "a/b", revision=5, error=ValueError)
        Path("gen.pt").touch()
        for name in ("run/gen_00000010.pt", "a/b.pth", "a/b.ckpt", "a/b.bin", "a/b.yaml", "a/b.yml", "gen.pt"):
            assert "--config and --checkpoint" in refusal(mf.MUNIT.from_pretrained, name, error=ValueError)
        for name in ("a/b.onnx", "a/b.pt2"):
            assert ".safetensors" in refusal(mf.MUNIT.from_pretrained, name, error=ValueError)
        assert "revision" in refusal(mf.MUNIT.from_pretrained, "owner/mistyped", error=ValueError)
        assert not server.requests
        server.add_folder("owner/other", Path("owner/name"))
        assert same(mf.MUNIT.from_pretrained("owner/other", revision="main"), make())

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            ("missing", "no such repository"),
            ("gated", "access must be asked for at http.*me/bad"),
            ("500", "500"),
            ("503", "503"),
            ("403", "403"),
            ("huge", r"model\.safetensors has 1099511627776 bytes"),
            ("lies", "does not end"),
            ("half", "cannot be fetched from"),
            ("gone", "storage answers 404"),
            ("etag", "does not answer as"),
            ("commit", "does not answer as"),
            ("no hub", "does not answer as"),
        ],
    )
    def test_bad_servers(
        self, server: HubServer, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
    ) -> None:
        monkeypatch.setattr(time, "sleep", lambda _: None)  # between attempts
        if fault != "missing":
            server.add_folder("me/bad", folder, fault)
        message = refusal(mf.MUNIT.from_pretrained, "me/bad")
        assert message.startswith("me/bad: ") and re.search(words, message), message
        assert not [path for path in home.parent.rglob("*") if "escaped" in path.name]
        blobs = [path for path in home.rglob("blobs/*") if path.stat().st_size > 10_000]
        assert all(path.suffix == ".incomplete" for path in blobs)  # none, in new versions of huggingface_hub
        if fault.isdigit():
            assert len(server.requests) == 1  # one attempt
        if fault == "huge":
            assert not any("/objects/" in path for _, path in server.requests)

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"README.md": "x"}, "no config.json"),
            ({"model_index.json": "{}", "unet/config.json": "{}"}, "no config.json"),
            ({"config.json": '{"model_type": "bert"}', "model.safetensors": b"x" * 99}, "transformers"),
            ({"config.json": '{"_class_name": "X"}', "pytorch_model.bin": b"x"}, "diffusers"),
            ({"config.json": "own", "pytorch_model.bin": b"x"}, r"no model\.safetensors.*pickle"),
            ({"config.json": "own", "model.safetensors": b"x" * 99}, "not a whole safetensors file"),
            ({"config.json": "{" * 100}, "levels"),
            ({"config.json": " " * 1_000_001}, r"config\.json has 1000001 bytes"),
        ],
    )
    def test_foreign_repositories(self, server: HubServer, folder: Path, files: dict[str, Any], words: str) -> None:
        own = (folder / "config.json").read_bytes()
        server.add("them/theirs", {name: own if data == "own" else data for name, data in files.items()})
        message = refusal(mf.MUNIT.from_pretrained, "them/theirs")
        assert message.startswith("them/theirs: ") and re.search(words, message), message
        # Neither pickles, nor weights of what is foreign.
        fetched = {path.rpartition("/")[2] for _, path in server.requests if "resolve" in path}
        assert fetched <= {"config.json"} | ({"model.safetensors"} if files.get("config.json") == "own" else set())
        assert ("/objects/" in str(server.requests)) == ("whole" in words)

    def test_a_repository_of_the_other_class(self, server: HubServer, tmp_path: Path) -> None:
        make(mf.UNIT).save_pretrained(tmp_path / "unit")
        server.add_folder("me/unit", tmp_path / "unit")
        message = refusal(mf.MUNIT.from_pretrained, "me/unit")
        assert message.startswith("me/unit: ") and "UNIT.from_pretrained" in message

    def test_the_cache_serves_while_the_server_fails(self, server: HubServer, folder: Path) -> None:
        repository = server.add_folder("me/x", folder)
        mf.MUNIT.from_pretrained("me/x")
        repository.fault = "500"
        assert same(mf.MUNIT.from_pretrained("me/x"), make())
        assert "500" in refusal(mf.MUNIT.from_pretrained, "me/x", force_download=True)

    def test_command_line(self, server: HubServer, folder: Path, home: Path, tmp_path: Path) -> None:
        server.add_folder("me/model", folder, "warns")
        server.add_folder("me/broken", folder, "500")
        Image.new("RGB", (32, 32)).save(tmp_path / "x.png")

        def translate(name: str, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "munit_fast", "translate", "--pretrained", name, "--input", "x.png"]
            command += ["--num_style", "1", "--device", "cpu", *more]
            variables = environment(server.endpoint, home) | env
            return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=200)

        done = translate("me/model")
        assert done.returncode == 0, done.stderr
        assert "CC BY 4.0" in done.stderr and list((tmp_path / "translated").glob("*.png"))
        assert (
            r"look \x1b]0;title" in done.stderr and done.stderr.replace("\n", "").isprintable()
        )  # what the server said
        seen = len(server.requests)
        assert translate("me/model", HF_HUB_OFFLINE="1").returncode == 0
        assert translate(str(folder)).returncode == 0
        assert len(server.requests) == seen
        for name in ("me/none", "me/broken"):
            refused = translate(name)
            assert refused.returncode == 1 and refused.stderr.startswith(f"munit-fast: {name}: ")
            assert refused.stderr.count("\n") == 1 and refused.stderr[:-1].isprintable()
