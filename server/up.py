"""``fed-server up``: the fence before the SuperLink, in one process that ends whole."""

import asyncio
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import uvicorn

from fedgan.bell import changed_ns
from fedgan.errors import HomeError, RunFolderError
from fedgan.flower import check_flower
from fedgan.forward import streaming_client
from fedgan.identity import fingerprint
from fedgan.locks import held
from server.authority import Enrolment, renew_server
from server.current import CurrentRun
from server.door import door_to, server_context
from server.fence import Endpoint, Fence
from server.home import Home
from server.registry import Registry
from server.superlink import Keys, Superlink

log = logging.getLogger(__name__)

EXPIRY_LOOK_S = 24 * 3600.0


def up(home: Home, *, routes: Mapping[str, Endpoint] | None = None) -> None:
    """Keep the federation's link up until SIGINT or SIGTERM, and take up the run that somebody left unfinished.

    ``routes`` are further paths of the fence, for sites.

    Raises:
        HomeError: there is no federation, it is up already, or its address is in use.
        SettingsError: Flower is of an unknown version.
    """
    check_flower()
    federation, until = home.federation, threading.Event()
    refusal = HomeError(f"the federation in {home.path} is up already; end that fed-server up first")
    with held(home.up_lock, refusal), _listening(federation.listen, federation.port) as listening:
        renew_server(home)
        link = Superlink(home)
        link.prepare()
        keys = Keys(home, link, Registry(home.sites))
        log.info(
            "the federation %s is at %s; its authority's SHA-256 is %s",
            federation.name,
            federation.address,
            fingerprint(home.authority.certificate),
        )
        tasks = (
            link.run,
            link.run_executor,
            keys.keep_told,
            partial(_keep_signed, home, link),
            CurrentRun(home).keep_followed,
            lambda ended: asyncio.run(serve(home, link.url, routes or {}, listening, ended)),
        )
        _run_all(tasks, until)


def _keep_signed(home: Home, link: Superlink, until: threading.Event) -> None:
    """Renew the server's certificate in time until the event; the fence sees that by itself."""
    while not until.wait(EXPIRY_LOOK_S):
        try:
            if renew_server(home):
                link.restart()
        except (HomeError, RunFolderError) as failure:
            log.warning("the server's certificate could not be renewed, and is tried again tomorrow: %s", failure)


def _run_all(tasks: tuple[Callable[[threading.Event], None], ...], until: threading.Event) -> None:
    """Run ``tasks`` side by side until a signal comes or one of them ends, and raise what that one has raised."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: until.set())
    with ThreadPoolExecutor(len(tasks)) as pool:
        running = [pool.submit(task, until) for task in tasks]
        for one in running:
            one.add_done_callback(lambda _: until.set())
        until.wait()
    for one in running:
        one.result()


async def serve(
    home: Home, link_url: str, routes: Mapping[str, Endpoint], listening: socket.socket, until: threading.Event
) -> None:
    """Be the fence on a listening socket, before the SuperLink at ``link_url``, until the event."""
    verify = ssl.create_default_context(cafile=home.authority_certificate)
    async with streaming_client(verify) as client:
        context, signed = server_context(home), changed_ns(home.server_certificate)
        fence = Fence(Enrolment(home), home.audit, client, link_url, home=home.path, routes=routes)
        server = uvicorn.Server(door_to(fence, context, fence.turned))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not until.is_set() and not serving.done():
            await asyncio.sleep(0.2)
            if signed != (signed := changed_ns(home.server_certificate)):
                context.load_cert_chain(home.server_certificate, home.server_key)  # for who comes in from now on
        fence.fleet.long_poll.close()
        server.should_exit = True
        await serving


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise HomeError(
            f"{host}:{port} cannot be listened on ({error.strerror}); end what listens there, or change the address"
        ) from error
