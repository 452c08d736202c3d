"""Serves the page: its address, its own temporary folder, and what a request may ask for.

What this package takes or replaces of the undocumented parts of Gradio is that of Gradio 6.31: the addresses below,
`Blocks.process_api`, `has_launched`, `async_move_resource_to_block_cache`, `temp_files`, `preprocess` of components.
"""

from __future__ import annotations

import asyncio
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

from munit_fast.app.folder import Folder
from munit_fast.app.translation import Limits, Translator
from munit_fast.models.munit import MUNIT, UNIT
from munit_fast.utils.optional import require

if TYPE_CHECKING:
    from gradio import Blocks

FIRST_PORT, PORTS = 7860, 20
# What the page itself asks for; Gradio answers more: records of other users' runs, monitoring, its own editor, …
_GET = (
    "/",
    "/gradio_api/queue/data",
    "/gradio_api/upload_progress",
    "/gradio_api/app_id",
    "/theme.css",
    "/config",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
)
_GET_BELOW = ("/gradio_api/file=", "/gradio_api/heartbeat/", "/assets/", "/static/", "/svelte/")
_POST = (
    "/gradio_api/queue/join",
    "/gradio_api/upload",
    "/gradio_api/component_server",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
    """Serve the page of a model until Ctrl-C, SIGTERM, or the end of its terminal.

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
    before = {}
    if threading.current_thread() is threading.main_thread():
        names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
        before = {name: signal.getsignal(name) for name in map(signal.Signals.__getitem__, names)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as `nohup` wants it
            signal.signal(number, lambda *_: stop.set())
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
        for number, handler in before.items():
            signal.signal(number, handler)


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

        app = _application(translator, Folder(Path(folder), limits.folder_bytes), host)
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


def _application(translator: Translator, folder: Folder, host: str) -> Any:
    """The ASGI application."""
    import fastapi
    import gradio as gr

    from munit_fast.app.page import CSS, make_page, make_theme

    blocks = make_page(translator, folder)
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
    return _Guard(app, translator.limits, folder, loopback=host in _LOOPBACK or host.startswith("127."))


class _Guard:
    """ASGI middleware: only the requests of the page, of bounded size, and none that another site makes.

    Args:
        app: The application behind it.
        limits: What a request may have.
        folder: Where uploads go.
        loopback: Whether only this machine reaches the page. Then it answers by the names of this machine and of
            `--share` only: the name of another site may lead to this machine too ("DNS rebinding").
    """

    def __init__(self, app: Any, limits: Limits, folder: Folder, *, loopback: bool) -> None:
        self.app, self.folder, self.loopback = app, folder, loopback
        self.limit = limits.upload_bytes
        self.body_limit = limits.upload_bytes + 2**16  # an upload has a little around the file

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        is_upload = scope["path"].startswith("/gradio_api/upload") and scope["method"] == "POST"
        refusal = self._refusal(scope["method"], scope["path"], headers)
        if not refusal and is_upload and await asyncio.to_thread(self.folder.is_full):
            refusal = 507, "there is no more room for files; try again later"
        if refusal:
            return await _answer(send, *refusal)
        seen, ended = 0, scope["method"] != "POST"

        async def bounded() -> Any:
            nonlocal seen, ended
            message = await receive()
            seen += len(message.get("body", b""))
            if not ended and (seen > self.body_limit or message["type"] == "http.disconnect"):
                # Of all errors, Gradio removes the files of an upload after this one only, and answers 413.
                raise _cut_off(f"The body exceeds the maximum allowed size of {self.limit} bytes, or was cut off.")
            ended = ended or not message.get("more_body", False)
            return message

        try:
            return await self.app(scope, bounded, send)
        finally:
            if is_upload:
                self.folder.add(seen)

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        if method in ("GET", "HEAD"):
            known = path in _GET or path.startswith(_GET_BELOW)
        else:
            known = method == "POST" and path.rstrip("/") in _POST
        if not known or "://" in path:  # file=https://… would be fetched and handed on
            return 404, "not found"
        name = _name(headers.get("host", ""))
        if self.loopback and name not in _LOOPBACK and not name.endswith(".gradio.live"):
            return 403, "this page is for its own machine; open it by the address that the command printed"
        if method != "POST":
            return None
        if not _is_same_origin(headers):
            return 403, "only this page may ask"
        size = headers.get("content-length", "0")
        if not (size.isascii() and size.isdigit()) or int(size) > self.body_limit:
            return 413, f"the file is larger than {self.limit} bytes"
        return None


def _name(host: str) -> str:
    """The name in a `Host` header, without the port."""
    return host.strip("[").partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()


def _is_same_origin(headers: dict[str, str]) -> bool:
    """Whether a request comes from a page of this server, or from no page.

    Browsers send `Sec-Fetch-Site` over HTTPS and to this machine only; over plain HTTP there is still `Origin`.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    if (origin := headers.get("origin")) is None:
        return True
    own = (headers.get("host", ""), headers.get("x-forwarded-host", ""))  # the latter of a proxy
    return origin.partition("://")[2].lower() in [host.lower() for host in own if host]


def _cut_off(message: str) -> Exception:
    from starlette.formparsers import MultiPartException

    return MultiPartException(message)


async def _answer(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


@contextlib.contextmanager
def _settings(folder: Path) -> Iterator[None]:
    """Gradio's environment variables: all its files in `folder`, no telemetry, and no other one.

    By others Gradio would serve more files, ask for its parts elsewhere, reload sources or edit them, or wait for a
    debugger.
    """
    changed = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),  # by default a folder of the working directory, and served
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    unset = [name for name in os.environ if name.startswith("GRADIO_")]
    before = {name: os.environ.get(name) for name in (*changed, *unset)}
    for name in unset:
        del os.environ[name]
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
