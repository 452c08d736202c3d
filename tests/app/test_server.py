"""What the server answers, and what it does to the machine that it runs on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from munit_fast.app import Limits, build, launch, serve, server
from munit_fast.app import folder as folder_module
from munit_fast.app.folder import size_of
from munit_fast.app.translation import UserError
from munit_fast.cli import main
from munit_fast.models.munit import MUNIT

httpx = pytest.importorskip("httpx")
ROOT = Path(__file__).parents[2]
GRID = ROOT / "docs" / "pretrained" / "openmoji-lines2color" / "grid.png"
OPTIONS = ["a2b", False, 2, 5]  # direction, size, styles, seed
# Events by their number on the page.
DRAW, TAKE = 0, 1


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return httpx.Client(base_url=address, timeout=60, trust_env=False)


def outcome(client: Any, event: int, data: list[Any]) -> dict[str, Any]:
    """The last message of an event, and the messages for the page in "shown"."""
    session = uuid.uuid4().hex
    body = {"data": data, "fn_index": event, "session_hash": session, "trigger_id": 1, "event_data": None}
    client.post("/gradio_api/queue/join", json=body).raise_for_status()
    shown = []
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {}
            if message.get("msg") == "log":
                shown.append(message["log"])
            if message.get("msg") == "process_completed":
                return message | {"shown": shown}
    raise AssertionError("the event did not end")


def uploaded(client: Any, data: bytes, name: str = "picture.png") -> str:
    answer = client.post("/gradio_api/upload", files={"files": (name, data, "image/png")})
    answer.raise_for_status()
    return answer.json()[0]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={ROOT}/pyproject.toml",
        "/gradio_api/file=pyproject.toml",
        "/gradio_api/file=.git/config",
        "/gradio_api/file={folder}/../../etc/passwd",
        "/gradio_api/file={folder}%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/file=%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%2f..%2f..%2froutes.py",
        "/assets/..%2f..%2f..%2froutes.py",
        "/svelte/..%2f..%2froutes.py",
        # What Gradio would fetch elsewhere, or tell about other users.
        "/gradio_api/file=https://example.com/",
        "/gradio_api/file=HTTPS://example.com/",
        "/gradio_api/file=http:%2F%2Fexample.com/",
        "/gradio_api/proxy=https://x.hf.space/",
        "/gradio_api/runs",
        "/gradio_api/run-history/records",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/startup-events",
        "/gradio_api/vibe-code",
        "/monitoring",
        "/monitoring/summary",
        "/configx",
        "/theme.css/x",
        "/gradio_api/app_idx",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_but_the_page_is_served(client: Any, path: str) -> None:
    answer = client.get(path.replace("{folder}", os.environ["GRADIO_TEMP_DIR"]))
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text and len(answer.content) < 300


def test_only_the_posts_of_the_page_are_taken(client: Any) -> None:
    for path in ("api/predict", "run/draw", "call/draw", "process_recording", "vibe-edit", "login", "queue/other"):
        assert client.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404
    assert client.put("/gradio_api/upload").status_code == 404


def test_other_sites_cannot_use_the_page(client: Any) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
        answer = client.post("/gradio_api/upload", files={"files": ("a.png", b"0")}, headers={"Sec-Fetch-Site": site})
        assert answer.status_code == status


def test_over_plain_http_the_origin_counts(model: MUNIT) -> None:
    def status(**headers: str) -> int:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.post("/gradio_api/upload", files={"files": ("a.png", b"0")}, headers=names).status_code

    with serve(model, host="0.0.0.0") as address:
        client = httpx.Client(base_url=address, timeout=60, trust_env=False)
        assert status(Host="box.lan:7860") == status(Host="box.lan:7860", Origin="http://Box.lan:7860") == 200
        for origin in ("http://evil.example", "http://box.lan", "http://box.lan:80", "null", ""):
            assert status(Host="box.lan:7860", Origin=origin) == 403
        assert status(Origin="https://public.example", X_Forwarded_Host="public.example") == 200  # a proxy
        assert (
            status(Origin="https://public.example", Sec_Fetch_Site="same-origin") == 200
        )  # a proxy that tells nothing


def test_on_this_machine_only_its_own_names_lead_to_the_page(client: Any) -> None:
    port = client.base_url.port
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST", "0123abc.gradio.live"):
        assert client.get("/config", headers={"Host": host}).status_code == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "gradio.live.evil.example",
        "[x",
        "",
    ):
        assert client.get("/config", headers={"Host": host}).status_code == 403


def test_uploads_are_bounded(client: Any) -> None:
    assert client.post("/gradio_api/upload", files={"files": ("a.png", b"0" * 1_200_000)}).status_code == 413
    for size in (b"-1", b"x", b"9" * 400):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as raw:
            raw.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + size + b"\r\n\r\n")
            assert raw.recv(100).split()[1] in (b"400", b"413")
    many = [("files", (f"{i}.png", b"0" * 300_000)) for i in range(6)]
    assert client.post("/gradio_api/upload", files=many).status_code == 413

    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'

    def endless(files: int) -> Any:
        for _ in range(files):
            yield head
            for _ in range(100 // files):
                yield b"0" * 30_000
            yield b"\r\n"

    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    before = size_of(folder)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for files in (1, 10):  # one that is too large, many that are together
        with contextlib.suppress(httpx.TransportError):  # hung up while this side still sends
            assert client.post("/gradio_api/upload", content=endless(files), headers=headers).status_code == 413
        wait_until(lambda: size_of(folder) == before)


def test_an_upload_that_breaks_off_leaves_no_file(client: Any) -> None:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    before = set(folder.rglob("*"))
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as raw:
        raw.sendall(head + part + b"0" * 100_000)
        wait_until(lambda: set(folder.rglob("*")) > before)
    wait_until(lambda: set(folder.rglob("*")) == before)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_full_folder_takes_no_more_files(model: MUNIT) -> None:
    with serve(model, limits=Limits(folder_bytes=1000)) as address:
        client = httpx.Client(base_url=address, timeout=60, trust_env=False)
        uploaded(client, b"0" * 2000)
        assert client.post("/gradio_api/upload", files={"files": ("a.png", b"0")}).status_code == 507


def test_a_full_folder_stops_computations(model: MUNIT) -> None:
    picture = GRID.read_bytes()
    with serve(model, limits=Limits(folder_bytes=len(picture) + 500_000)) as address:
        client = httpx.Client(base_url=address, timeout=60, trust_env=False)
        file = {"path": uploaded(client, picture), "meta": {"_type": "gradio.FileData"}}
        for seed in range(100):
            ended = outcome(client, TAKE, [None, file, "a2b", False, 2, seed])
            if ended["shown"]:
                break
        assert 0 < seed < 50
        assert size_of(Path(os.environ["GRADIO_TEMP_DIR"])) < len(picture) + 1_000_000


def test_the_size_of_the_folder_is_counted_between_walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[Path] = []
    monkeypatch.setattr(folder_module, "size_of", lambda path: walks.append(path) or size_of(path))
    (tmp_path / "a").write_bytes(b"0" * 60)
    folder = folder_module.Folder(tmp_path, 100)
    assert not folder.is_full()
    folder.add(50)
    assert folder.is_full() and len(walks) == 1
    monkeypatch.setattr(folder_module, "WALK_EVERY", -1)
    assert not folder.is_full() and len(walks) == 2  # what was counted is not there


def test_seeds_end_where_the_last_style_has_one(client: Any) -> None:
    picture = GRID.read_bytes()
    file = {"path": uploaded(client, picture), "meta": {"_type": "gradio.FileData"}}
    for given, used in ((2**32 - 1, 2**32 - 2), (2**40, 2**32 - 2), (-5, 0), (7, 7)):
        ended = outcome(client, TAKE, [None, file, "a2b", False, 2, given])
        data = ended["output"]["data"]
        assert [cell["caption"] for cell in data[1]["value"]] == [f"seed {used}", f"seed {used + 1}"]
        # One that can be used stays in its field, where another may have been typed meanwhile.
        assert data[-2] == (used if given != used else {"__type__": "update"})
        assert len(ended["shown"]) == (given != used)


def test_a_bad_picture_takes_the_one_of_before_away(client: Any) -> None:
    file = {"path": uploaded(client, b"no picture"), "meta": {"_type": "gradio.FileData"}}
    ended = outcome(client, TAKE, [None, file, *OPTIONS])
    assert ended["output"]["data"][1]["value"] == [] and ended["output"]["data"][-1] is None
    assert "picture.png: not an image" in ended["shown"][0]


def test_uploaded_names_stay_in_the_folder(client: Any) -> None:
    assert client.post("/gradio_api/upload", files={"files": ("..", b"x")}).status_code == 400
    for name in ("../../evil.png", "/etc/evil.png", "a/../../b.png", "\u202egnp.exe"):
        path = Path(uploaded(client, b"x", name))
        assert path.resolve().is_relative_to(os.environ["GRADIO_TEMP_DIR"]) and path.read_bytes() == b"x"


FOREIGN = [
    "/etc/passwd",
    str(GRID),
    "{folder}/../x.png",
    "https://example.com/a.png",
]


@pytest.mark.parametrize("path", FOREIGN)
def test_only_uploaded_files_are_read(
    client: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], path: str
) -> None:
    from gradio import processing_utils

    asked: list[Any] = []

    async def fetch(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    path = path.replace("{folder}", os.environ["GRADIO_TEMP_DIR"])
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for event, value in ((DRAW, path), (TAKE, file), (TAKE, {"path": path}), (TAKE, file | {"url": path})):
        ended = outcome(client, event, [None, value, *OPTIONS])
        assert not ended["success"]
        assert "root:" not in json.dumps(ended) and str(ROOT) not in json.dumps(ended)
    assert not asked and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "data",
    [
        [],
        [None] * 50,
        [None, ["x"], *OPTIONS],
        [None, "x\0y", *OPTIONS],
        [None, 7, *OPTIONS],
        [None, {"path": 1}, *OPTIONS],
        [{"path": "/etc/passwd"}, None, "c2d", False, 2, 5],
        [None, None, "a2b", False, "many", 5],
        [None, None, "a2b", False, 1e9, 5],
        [None, None, "a2b", False, 2, -5],
        [None, None, "a2b", False, 2, "<script>"],
    ],
)
def test_crafted_values_are_one_line_each(client: Any, capfd: pytest.CaptureFixture[str], data: list[Any]) -> None:
    for event in (DRAW, TAKE):
        ended = outcome(client, event, data)
        text = json.dumps(ended)
        assert "<script>" not in text and "site-packages" not in text
    assert "Traceback" not in capfd.readouterr().err


def test_a_bad_picture_gives_a_message(client: Any, capfd: pytest.CaptureFixture[str]) -> None:
    path = uploaded(client, b"<svg onload=alert(1)>", "<b>.png")
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for event, value in ((DRAW, path), (TAKE, file)):
        ended = outcome(client, event, [None, value, *OPTIONS])
        assert ended["success"] and len(ended["shown"]) == 1
        assert os.environ["GRADIO_TEMP_DIR"] not in ended["shown"][0] and "<b>" not in ended["shown"][0]
    assert "Traceback" not in capfd.readouterr().err


def test_the_page_names_no_other_machine(client: Any) -> None:
    for path in ("/", "/theme.css", "/config"):
        text = client.get(path).text
        assert "fonts.googleapis" not in text and "cdnjs" not in text
    config = client.get("/config").json()
    assert not config["analytics_enabled"] and not config["run_history"] and config["stylesheets"] == []


def test_settings_are_as_before_afterwards(model: MUNIT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    examples = tmp_path / ".gradio/cached_examples"  # which Gradio serves by default
    examples.mkdir(parents=True)
    (examples / "x.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_ROOT_PATH", "https://elsewhere.example/x")
    before = dict(os.environ)
    with serve(model) as address:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
        config = httpx.get(f"{address}config", trust_env=False).json()
        assert config["root"] == address.rstrip("/") and "elsewhere" not in httpx.get(address, trust_env=False).text
        for path in ("/etc/passwd", examples / "x.txt", ".gradio/cached_examples/x.txt"):
            assert httpx.get(f"{address}gradio_api/file={path}", trust_env=False).status_code == 403
    assert not folder.exists() and dict(os.environ) == before


def test_blocks_can_be_embedded(model: MUNIT) -> None:
    import gradio as gr

    assert isinstance(build(model), gr.Blocks)


# -- the command

WATCHED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored in what a shell started with &
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and this in what nohup started
def hook(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1"):
        print("CONNECTED", args[1], file=sys.stderr, flush=True)
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", "localhost", "::1", None):
        print("LOOKED UP", args[0], file=sys.stderr, flush=True)
sys.addaudithook(hook)
from munit_fast.app.translation import UserError
from munit_fast.cli import main
sys.argv = ["munit-fast", "app", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_the_command_serves_asks_nobody_and_leaves_nothing(tmp_path: Path, ending: signal.Signals) -> None:
    folders = {name: tmp_path / name for name in ("HOME", "TMPDIR", "cwd")}
    for folder in folders.values():
        folder.mkdir()
    environment = os.environ | {name: str(folder) for name, folder in folders.items()}
    environment |= {"GRADIO_SHARE": "True", "GRADIO_ANALYTICS_ENABLED": "True", "HTTP_PROXY": "http://127.0.0.1:9"}
    environment.pop("GRADIO_TEMP_DIR", None)
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED], cwd=folders["cwd"], env=environment, stdout=log, stderr=log
        )
    try:
        address = _address(process, tmp_path / "log")
        client = httpx.Client(base_url=address, timeout=60, trust_env=False)
        picture = GRID.read_bytes()
        file = {"path": uploaded(client, picture), "meta": {"_type": "gradio.FileData"}}
        ended = outcome(client, TAKE, [None, file, *OPTIONS])
        assert ended["success"] and not ended["shown"]
        cells = ended["output"]["data"][1]["value"]
        assert [cell["caption"] for cell in cells] == ["seed 5", "seed 6"]
        assert client.get(f"/gradio_api/file={cells[0]['image']['path']}").content.startswith(b"\x89PNG")
        assert list(folders["TMPDIR"].iterdir())
        process.send_signal(ending)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    text = (tmp_path / "log").read_text()
    assert "CONNECTED" not in text and "LOOKED UP" not in text and "Traceback" not in text
    assert "OpenMoji" in text  # whom to credit
    assert not list(folders["TMPDIR"].iterdir()) and not list(folders["cwd"].iterdir())
    assert not [path for path in folders["HOME"].rglob("*") if path.is_file() and "gradio" in str(path).lower()]


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("http://"):
                return line.split()[0]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(model: MUNIT, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}"):
            launch(model, port=port)
        sys_argv, sys.argv = sys.argv, ["munit-fast", "app", "--port", str(port)]
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            sys.argv = sys_argv
    assert ended.value.code == 1 and str(port) in capsys.readouterr().err.splitlines()[-1]


def test_without_a_port_the_next_free_one_is_taken(model: MUNIT, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(server, "FIRST_PORT", other.getsockname()[1])
        with serve(model) as address:
            assert int(address.rstrip("/").rpartition(":")[2]) > server.FIRST_PORT
            assert httpx.get(address, trust_env=False).status_code == 200
        monkeypatch.setattr(server, "PORTS", 1)
        with pytest.raises(ValueError, match="--port"), serve(model):
            pass


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1"])
def test_an_impossible_host_is_an_error(model: MUNIT, host: str) -> None:
    with pytest.raises(ValueError, match=host), serve(model, host=host):
        pass


def test_no_public_address_without_being_asked(model: MUNIT, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio import networking

    asked: list[Any] = []

    def tunnel(*args: Any, **kwargs: Any) -> str:
        asked.append(args)
        return "https://x.gradio.live"

    monkeypatch.setattr(networking, "setup_tunnel", tunnel)
    monkeypatch.setenv("GRADIO_SHARE", "True")

    for share in (False, True):
        shown: list[str] = []

        def started(address: str, shown: list[str] = shown) -> None:
            shown.append(address)
            signal.raise_signal(signal.SIGTERM)  # which ends it, after what else there is to start

        launch(model, share=share, started=started)
        assert len(asked) == share and len(shown) == 1 + share
    assert asked[0][:2] == ("127.0.0.1", int(shown[0].rstrip("/").rpartition(":")[2]))


def test_gradio_is_named_where_it_is_missing(model: MUNIT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(ImportError, match=r"munit-fast\[app\]"), serve(model):
        pass
    with pytest.raises(ImportError, match=r"munit-fast\[app\]"):
        build(model)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (UserError("<b>x</b>.png: no"), "&lt;b&gt;x&lt;/b&gt;.png: no"),
        (UserError("draw \x1b[31m first"), "Draw \\x1b[31m first"),
        (RuntimeError("/secret/path"), None),
    ],
)
def test_messages_of_errors_are_text(monkeypatch: pytest.MonkeyPatch, error: Exception, wanted: str | None) -> None:
    import gradio as gr

    from munit_fast.app import page

    shown: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda message, title: shown.append(message))

    def failing() -> None:
        raise error

    assert page._answering(failing, 3)() == [gr.skip()] * 3
    assert len(shown) == 1 and "secret" not in shown[0]
    assert wanted is None or shown == [wanted]


def test_bodies_without_a_length_are_bounded_too(client: Any) -> None:
    body = {"data": [None, None, *OPTIONS], "fn_index": DRAW, "session_hash": "s", "trigger_id": 1, "event_data": None}

    def padded(size: int) -> Any:
        yield json.dumps(body).encode()
        for _ in range(size // 10_000):
            yield b" " * 10_000

    headers = {"Content-Type": "application/json"}
    assert client.post("/gradio_api/queue/join", content=padded(100_000), headers=headers).status_code == 200
    with contextlib.suppress(httpx.TransportError):  # hung up
        assert client.post("/gradio_api/queue/join", content=padded(3_000_000), headers=headers).status_code >= 400
