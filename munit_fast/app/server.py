"""Serves the page: its address, its own temporary folder, and what a request may ask for."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from munit_fast.app.translation import Limits, Translator
from munit_fast.models.munit import MUNIT, UNIT
from munit_fast.utils.optional import require

if TYPE_CHECKING:
    from gradio import Blocks

FIRST_PORT, PORTS = 7860, 20
# What the page itself asks for; Gradio answers more: records of other users' runs, monitoring, its own editor, …
_GET = (
    "/gradio_api/file=",
    "/gradio_api/queue/data",
    "/gradio_api/heartbeat/",
    "/gradio_api/upload_progress",
    "/gradio_api/app_id",
    "/assets/",
    "/static/",
    "/svelte/",
    "/theme.css",
    "/config",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
)
_POST = (
    "/gradio_api/queue/join",
    "/gradio_api/upload",
    "/gradio_api/component_server",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)
# Variables by which Gradio would serve other files, reload sources, edit them, or wait for a debugger.
_UNSET = ("GRADIO_ALLOWED_PATHS", "GRADIO_SHARE", "GRADIO_WATCH_DIRS", "GRADIO_VIBE_MODE", "GRADIO_MCP_SERVER")


def build(model: MUNIT | UNIT, *, amp: str = "off", limits: Limits | None = None, name: str | None = None) -> Blocks:
    """The page of a model as Gradio blocks. `launch` serves it safely; this is for embedding it in another page.

    Args:
        model: In evaluation mode, on its device.
        amp: Mixed precision, as `munit_fast.amp.amp_dtype` takes it.
        limits: What a user may ask for.
        name: What to call the model; by default the name of its file.

    Raises:
        ImportError: Gradio is missing.
    """
    with _settings(Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio")):
        require("gradio", "app")
        from munit_fast.app.page import make_page

        return make_page(Translator(model, amp=amp, limits=limits, name=name))


def launch(
    model: MUNIT | UNIT,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    amp: str = "off",
    limits: Limits | None = None,
    name: str | None = None,
    started: Callable[[str], None] = print,
) -> None:
    """Serve the page of a model until Ctrl-C or SIGTERM.

    Args:
        model: In evaluation mode, on its device.
        host: The address to listen on; 127.0.0.1 is reached from this machine only, 0.0.0.0 from every other one.
        port: The port; None takes the first free one from 7860 on.
        share: Also open a public address through Gradio's servers. Nothing but this argument does.
        amp: Mixed precision, as `munit_fast.amp.amp_dtype` takes it.
        limits: What a user may ask for.
        name: What to call the model; by default the name of its file.
        started: Called with each address of the page.

    Raises:
        ImportError: Gradio is missing.
        ValueError: The host cannot be listened on, or the port is taken.
        RuntimeError: There is no public address.
    """
    stop = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with serve(model, host=host, port=port, amp=amp, limits=limits, name=name) as address:
            started(address)
            with _public_address(host, int(address.rstrip("/").rpartition(":")[2])) if share else _nothing() as public:
                if public:
                    started(public)
                while not stop.wait(0.5):  # with a timeout, or Windows would not see Ctrl-C
                    pass
    except KeyboardInterrupt:
        pass
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def serve(
    model: MUNIT | UNIT,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    amp: str = "off",
    limits: Limits | None = None,
    name: str | None = None,
) -> Iterator[str]:
    """Serve the page in a thread, inside the block. Arguments and errors are those of `launch`.

    Yields:
        The address of the page.
    """
    limits = limits or Limits()
    translator = Translator(model, amp=amp, limits=limits, name=name)
    with (
        _listening(host, port) as listener,
        tempfile.TemporaryDirectory(prefix="munit-fast-app-", ignore_cleanup_errors=True) as folder,
        _settings(Path(folder)),
    ):
        require("gradio", "app")
        import uvicorn

        app = _application(translator, Path(folder))
        config = uvicorn.Config(
            app, log_level="critical", access_log=False, ws="none", timeout_graceful_shutdown=1, lifespan="on"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                thread.join(0.01)
                if not thread.is_alive():
                    raise RuntimeError(f"the server on {host} did not start")
            shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
            yield f"http://{shown}:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def _application(translator: Translator, folder: Path) -> Any:
    """The ASGI application."""
    import fastapi
    import gradio as gr

    from munit_fast.app.page import CSS, make_page, make_theme

    blocks = make_page(translator)
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=translator.limits.upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=make_theme(),
        css=CSS,
    )
    blocks.has_launched = blocks.is_running = True  # Gradio checks the paths of files from then on only
    return _Guard(app, translator.limits, folder)


class _Guard:
    """ASGI middleware: only the requests of the page, of bounded size, and none that another site makes."""

    def __init__(self, app: Any, limits: Limits, folder: Path) -> None:
        self.app, self.limits, self.folder = app, limits, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        headers = {key.lower(): value for key, value in scope["headers"]}
        refusal = self._refusal(scope["method"], scope["path"], headers)
        if refusal:
            return await _answer(send, *refusal)
        # An upload has a little around the file.
        limit, seen = self.limits.upload_bytes + 2**16, 0

        async def bounded() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                return {"type": "http.disconnect"}
            return message

        return await self.app(scope, bounded, send)

    def _refusal(self, method: str, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if method in ("GET", "HEAD"):
            known = path == "/" or path.startswith(_GET)
        else:
            known = method == "POST" and path.rstrip("/") in _POST
        if not known or "://" in path:  # file=https://… would be fetched and handed on
            return 404, "not found"
        if method != "POST":
            return None
        if headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
            return 403, "only this page may ask"
        size = headers.get(b"content-length", b"0")
        if not size.isdigit() or int(size) > self.limits.upload_bytes + 2**16:
            return 413, f"the file is larger than {self.limits.upload_bytes} bytes"
        if path.startswith("/gradio_api/upload") and _size_of(self.folder) > self.limits.folder_bytes:
            return 507, "there is no more room for files; try again later"
        return None


async def _answer(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            total += path.lstat().st_size
    return total


@contextlib.contextmanager
def _settings(folder: Path) -> Iterator[None]:
    """Gradio's environment variables: all its files in `folder`, no telemetry, nothing that opens this machine."""
    changed = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),  # by default a folder of the working directory, and served
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ.get(name) for name in (*changed, *_UNSET)}
    for name in _UNSET:
        os.environ.pop(name, None)
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _listening(host: str, port: int | None) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise ValueError(f"--host {host}: {error.strerror}; use 127.0.0.1, or 0.0.0.0 for every network") from None
    for number in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,):
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":  # a port that a program gave back a moment ago; elsewhere it would share a taken one
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen(128)
        except OSError as error:
            listener.close()
            reason = error.strerror
            continue
        with listener:
            yield listener
        return
    if port is None:
        raise ValueError(f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} of {host}: {reason}; give another as --port")
    raise ValueError(f"--port {port} of {host}: {reason}; give another, or leave --port out for the next free one")


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield None


@contextlib.contextmanager
def _public_address(host: str, port: int) -> Iterator[str]:
    """A tunnel from Gradio's servers to the port. Gradio fetches the program for it the first time."""
    from gradio import networking
    from gradio.tunneling import CURRENT_TUNNELS

    known = list(CURRENT_TUNNELS)
    try:
        yield networking.setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
    except RuntimeError as error:
        raise RuntimeError(f"--share: no public address ({error})") from None
    finally:
        for tunnel in CURRENT_TUNNELS:
            if tunnel not in known:
                tunnel.kill()
