"""One process: the TLS door, the identity door, the worker. Ready when `server.json` is there."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from local_runner.clock import Clock
from local_runner.mock_server import credentials, tls
from local_runner.mock_server.app import App
from local_runner.mock_server.chat import make_speaker
from local_runner.mock_server.control import snapshots
from local_runner.mock_server.control.controls import Controls, Settings
from local_runner.mock_server.control.journal import Journal
from local_runner.mock_server.dice import Dice
from local_runner.mock_server.doors.table import make_app
from local_runner.mock_server.engine import Engine
from local_runner.mock_server.names import FOUNDRY, Names
from local_runner.mock_server.protocol import Protocol
from local_runner.mock_server.storage.blobs import BlobStore
from local_runner.mock_server.store import Store
from local_runner.mock_server.twin import Site, Twin
from local_runner.mock_server.worker import Worker
from maas_client.errors import MaasError
from maas_client.spec.rundir import is_held, read_json, write_json

_LOCK_TRIES = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve."""

    home: Path
    engine: Engine
    site: Callable[[str], Site]
    """Makes the site of its address, which is known once the port is."""
    host: str = "127.0.0.1"
    settings: Settings = field(default_factory=Settings)
    """What the controls start from."""
    seed: int | None = None
    """Of ids, keys and chances; None for the system's randomness."""
    plain: bool = False
    """Without TLS: for measurements, as no SDK sends a token over plain HTTP."""
    port: int = 0
    """0: the one of last time, so that clients find the server again; else any that is free."""


def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        MaasError: another server has this home, or the port is taken.
    """
    os.umask(0o077)  # rows, adapters and what was asked are their owner's
    options.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(options.home))
        names = Names(options.site("").region)
        host = _called(options.host)
        files = tls.ensure(options.home / "tls", host=host, public=names.certified())
        secrets = credentials.ensure(options.home / "secrets.json")
        port = options.port or _last(options, "port", options.host)
        door = stack.enter_context(_listen(options.host, port))
        port = _last(options, "identity_port", "127.0.0.1")
        identity_door = stack.enter_context(_listen("127.0.0.1", port))
        scheme = "http" if options.plain else "https"
        url = f"{scheme}://{host}:{door.getsockname()[1]}"
        twin = make_twin(options, url, secrets, stack)
        worker = Worker(twin)
        journal = Journal(options.home / "journal.jsonl", asdict(secrets).values())
        stack.callback(journal.close)
        main = _server(
            make_app(twin, worker, journal),
            certificate=None if options.plain else files,
            names=names,
        )
        side = _server(_identity(twin))
        identity_url = f"http://127.0.0.1:{identity_door.getsockname()[1]}/msi/token"
        _announce(options, twin, files.ca, identity_url, stack)
        worker.start()
        stack.callback(worker.stop)
        _run(main, door, side, identity_door)


def make_twin(
    options: Options, url: str, secrets: credentials.Secrets, stack: contextlib.ExitStack
) -> Twin:
    """The twin of a home; the stack closes what it opens."""
    store = Store(options.home / "store.sqlite")
    stack.callback(store.close)
    snapshots.recover(store, options.home)
    speaker = make_speaker(options.engine, options.home)
    stack.callback(speaker.close)
    return Twin(
        options.site(url),
        store,
        BlobStore(options.home / "blobs", store),
        secrets,
        options.engine,
        speaker,
        Clock(options.engine.clock),
        Dice(store, options.seed),
        Controls(store, options.settings, seed=options.seed),
    )


def _announce(
    options: Options, twin: Twin, ca: Path, identity_url: str, stack: contextlib.ExitStack
) -> None:
    """Write `server.json`: from then on clients find us."""
    site, file = twin.site, options.home / "server.json"
    state = {
        "pid": os.getpid(),
        "url": site.url,
        "identity_endpoint": identity_url,
        "identity_header": twin.secrets.identity_header,
        "ca": str(ca),
        "subscription_id": site.subscription,
        "resource_group": site.group,
        "workspace": site.workspace,
        "region": site.region,
        "openai_url": f"{site.url}/v1",
        "openai_account": FOUNDRY,
        "api_key": twin.secrets.api_key,
        "engine": twin.engine.name,
        "as_of": site.as_of.isoformat(),
        "base": "" if twin.engine.simulates else twin.engine.base,
    }
    ports = {
        "port": int(site.url.rpartition(":")[2]),
        "identity_port": urlsplit(identity_url).port,
    }
    write_json(options.home / "last.json", ports)
    credentials.write_secret(file, (json.dumps(state, indent=2) + "\n").encode())
    stack.callback(file.unlink, missing_ok=True)


def _identity(twin: Twin) -> Starlette:
    """The managed-identity endpoint, as App Service has it. Plain HTTP, loopback only."""

    async def token(request: Request) -> JSONResponse:
        if not credentials.same(
            request.headers.get("x-identity-header", ""), twin.secrets.identity_header
        ):
            return JSONResponse(
                {"error": "unauthorized", "message": "X-IDENTITY-HEADER is wrong"}, 401
            )
        resource = request.query_params.get("resource", "")
        text, ends = twin.secrets.token(resource)
        return JSONResponse(
            {
                "access_token": text,
                "expires_on": str(ends),
                "resource": resource,
                "token_type": "Bearer",
            }
        )

    return Starlette(routes=[Route("/msi/token", token)])


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One server a home."""
    import fcntl

    with (home / "server.lock").open("a+") as stream:
        for _ in range(_LOCK_TRIES):  # whoever asks `state_of` holds it for a moment
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            else:
                break
        else:
            raise MaasError(
                f"a mock already serves from {home}",
                hint="`maas mock status` shows it; `maas mock stop` stops it.",
            )
        yield


def _called(host: str) -> str:
    """What clients call the server: no one can connect to "every address"."""
    return socket.gethostname() if host in ("0.0.0.0", "::", "") else host  # noqa: S104 - asked for


def _last(options: Options, which: str, host: str) -> int:
    """The port of last time, so that clients and their environment still fit; 0 where it is not free."""
    file = options.home / "last.json"
    if not file.exists():
        return 0
    with contextlib.suppress(MaasError, KeyError, TypeError):
        port = int(read_json(file)[which])
        with contextlib.suppress(OSError), socket.create_server((host, port)):
            return port
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=512)
    except OSError as error:
        raise MaasError(
            f"{host}:{port}: {error.strerror}", hint="Name another --port, or none for a free one."
        ) from error


def _server(
    app: App | Starlette,
    *,
    certificate: tls.Certificates | None = None,
    names: Names | None = None,
) -> uvicorn.Server:
    options: dict[str, Any] = {}
    if certificate is not None:
        options = {"ssl_certfile": str(certificate.chain), "ssl_keyfile": str(certificate.key)}
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        http=Protocol,
        ws="none",
        proxy_headers=False,
        **options,
    )
    config.load()
    if certificate is not None and names is not None and config.ssl is not None:
        _show_public(config.ssl, certificate, names)
    return uvicorn.Server(config)


def _show_public(local: ssl.SSLContext, files: tls.Certificates, names: Names) -> None:
    """Show the other certificate to those who ask for a public name."""
    public = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    public.load_cert_chain(files.public_chain, files.key)

    def choose(line: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name and names.owns(name):
            line.context = public

    local.sni_callback = choose


def _run(
    main: uvicorn.Server, door: socket.socket, side: uvicorn.Server, side_door: socket.socket
) -> None:
    """Serve both doors; the main one minds the signals."""

    def no_signals() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    side.capture_signals = no_signals  # type: ignore[assignment,method-assign]  # a thread may not handle signals
    main.capture_signals = no_signals  # type: ignore[assignment,method-assign]  # ours end both, without re-raising

    def stop(*_: object) -> None:
        main.should_exit = side.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=side.run, kwargs={"sockets": [side_door]}, daemon=True)
    thread.start()
    try:
        main.run(sockets=[door])
    finally:
        side.should_exit = True
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def log_to_stderr() -> None:
    """One line for each thing worth knowing; requests and secrets are not."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def state_of(home: Path) -> dict[str, Any] | None:
    """What a server of this home says of itself; None where none runs."""
    file = home / "server.json"
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if is_held(home / "server.lock") else None
