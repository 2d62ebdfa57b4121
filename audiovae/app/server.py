"""The page on the loopback address of this machine: who may ask, how large, and what is left when it ends."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from audiovae.errors import AudiovaeError

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "local" + "host")
_GRACE_SECONDS = 1  # in which open connections may end
# What gradio reads when it is loaded or builds a page: it asks nobody for anything, and keeps nothing of its own.
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_SHARE": "False", "GRADIO_MCP_SERVER": "False", "GRADIO_RUN_HISTORY": "False",
}  # fmt: skip


def serve(port: int = 7860, model: str | None = None, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve the page until the process is interrupted or terminated, which goes on as that exception.

    Args:
        port: 0 takes any that is free.
        model: a prior of one's own, a name or a folder, to choose beside those shipped.
        ready: is told the address as soon as the page answers.

    Raises:
        AudiovaeError: no gradio, or a port that cannot be used.
        ModelError: no such model.
    """
    with private_folder() as folder, listening(port) as listener:
        app = web(folder, model)
        import uvicorn

        from audiovae.app.sounds import ENDED

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                ready(f"http://{ADDRESS}:{listener.getsockname()[1]}/")

        config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=_GRACE_SECONDS)
        sys.addaudithook(_loopback_alone)
        try:
            Server(config).run(sockets=[listener])
        finally:
            ENDED.set()


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that no other user of the machine can read, for all that the page keeps for a while; it ends here."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="audiovae-app-", ignore_cleanup_errors=True) as name:
        tempfile.tempdir = name  # of all libraries
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket of this machine alone.

    Raises:
        AudiovaeError: the port is in use, or not for everybody.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
            listener.listen(128)
        except OSError as error:
            reason = error.strerror or "it cannot be used"
            raise AudiovaeError(
                f"app: port {port} is not free ({reason}); choose another --port, or 0 for any"
            ) from error
        yield listener


def _loopback_alone(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuses whatever a library of this process asks of the network, such as a file by its address."""
    if event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None
    else:
        host = arguments[0] if event in ("socket.getaddrinfo", "socket.gethostbyname") else None
    host = host.decode(errors="replace") if isinstance(host, bytes) else host
    if isinstance(host, str) and host not in HOSTS:
        raise PermissionError(f"the page asks nobody but this machine, not {host}")


def web(folder: Path, model: str | None = None) -> Any:
    """The page as an ASGI application that answers this machine's own pages alone.

    Args:
        folder: for sounds that come and go.

    Raises:
        AudiovaeError: no gradio.
        ModelError: no such model.
    """
    from audiovae.app.sounds import LARGEST_MEGABYTES, load_prior

    if model is not None:
        load_prior(model)  # before nobody is asked any more: it may come from the hub
    os.environ.update(SETTINGS, GRADIO_TEMP_DIR=str(folder))
    try:
        with warnings.catch_warnings():  # of its libraries, which users can do nothing about
            warnings.simplefilter("ignore")
            import gradio as gr
    except ImportError as error:
        raise AudiovaeError("app needs gradio: pip install 'audiovae[app]'") from error
    from fastapi import FastAPI
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import BaseRoute, Route

    from audiovae.app import live, page
    from audiovae.app.denoise import EXAMPLES

    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False), Middleware(OwnPages)]
    routes: list[BaseRoute] = [
        Route(live.PATH, live.CONVERSATIONS.answer_begin, methods=["POST"]),
        Route(live.PATH + "/{name}", live.CONVERSATIONS.answer_block, methods=["POST"]),
    ]
    app = FastAPI(routes=routes, middleware=guards, docs_url=None, redoc_url=None, openapi_url=None)
    return gr.mount_gradio_app(
        app,
        page.build(folder, model),
        path="/",
        server_name=ADDRESS,
        footer_links=[],
        run_history=False,
        allowed_paths=[str(EXAMPLES)],
        max_file_size=f"{LARGEST_MEGABYTES}mb",
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        theme=page.theme(),
        css=page.CSS,
    )


class OwnPages:
    """Refuses what a page from elsewhere, open in the same browser, asks for: a request that names its origin."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        origins = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"origin"]
        if all(urlsplit(origin).hostname in HOSTS for origin in origins):
            await self._app(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Not from another page"})
