"""The coordinator's TLS, so that who fails to come in is seen: uvicorn's protocol with a handshake of its own.

A site shows its certificate in the handshake (mutual TLS); who has none yet may come in without, and the fence then
decides what for. Whoever shows one of another authority, or speaks no TLS at all, does not come in.
"""

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.home import Home

HANDSHAKE_TIMEOUT_S = 15.0

STRANGER_TIMEOUT_S = 60.0
"""How long a connection without a certificate may last: long enough to ask to be signed, too short to be in the way."""

MOST_CONNECTIONS, MOST_OF_ONE_SITE = 1024, 128

MOST_STRANGERS, MOST_STRANGERS_THERE, MOST_OPENING_THERE = 64, 16, 128
"""Connections without a certificate: all together, from one address, and still in the handshake from one address.
Whoever has none, then, leaves the places to sites."""

log = logging.getLogger(__name__)

Turned = Callable[[str, str], None]
"""Is told of an address from which nobody came in, and why."""


def server_context(home: Home) -> ssl.SSLContext:
    """Return the coordinator's side of mutual TLS, in which only the federation's own authority is believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(home.authority_certificate)
    context.load_cert_chain(home.server_certificate, home.server_key)
    return context


def door_to(app: Any, context: ssl.SSLContext, turned: Turned) -> uvicorn.Config:  # noqa: ANN401 - uvicorn takes any
    """Return the configuration of a server that speaks TLS only, and tells ``app`` who is at the other end.

    The certificate that was shown (DER) is ``scope["state"]["certificate"]``, or None.
    """

    class Door(_Door):
        tls = context
        places = Places()
        tell = staticmethod(turned)

    return uvicorn.Config(
        app,
        http=Door,
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # an address is whence a connection comes, never what a header says
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )


class Places:
    """Connections that are open, under names of which each may have so many.

    >>> places = Places()
    >>> [places.take({"strangers": 2, "192.0.2.7": 1}) for _ in range(2)]
    [True, False]
    >>> places.give_back({"strangers": 2, "192.0.2.7": 1})
    >>> places.take({"strangers": 2, "192.0.2.7": 1})
    True
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._taken: Counter[str] = Counter()

    def take(self, most: Mapping[str, int]) -> bool:
        """Take a place under each name, or none if one has as many as it may have; return whether it was taken."""
        free = all(self._taken[name] < number for name, number in most.items())
        if free:
            self._taken.update(list(most))
        return free

    def give_back(self, names: Iterable[str]) -> None:
        """Give back a place under each name."""
        self._taken.subtract(list(names))
        self._taken = +self._taken  # who has none is forgotten


class _Door(HttpToolsProtocol):
    """One connection: TCP first, then TLS, then what uvicorn makes of it."""

    tls: ssl.SSLContext
    tell: Turned
    places: Places
    held: Mapping[str, int] | None = None
    """Under which names it has its place, once it is open."""
    opening: asyncio.Task[None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.pause_reading()  # what comes first is for TLS
        self.early = bytearray()
        self.opening = self.loop.create_task(self._open(transport))

    async def _open(self, transport: asyncio.Transport) -> None:
        address = str((transport.get_extra_info("peername") or ("unknown",))[0])
        inner = await self._encrypted(transport, address)
        if inner is None or inner.is_closing():
            return
        certificate = cast(ssl.SSLObject, inner.get_extra_info("ssl_object")).getpeercert(binary_form=True)
        here = {address: MOST_STRANGERS_THERE, "strangers": MOST_STRANGERS}
        most = {certificate.hex(): MOST_OF_ONE_SITE} if certificate else here
        if not self.places.take(most):
            self._turn_away(inner, address)
            return
        self.held = most
        self.app_state = {**self.app_state, "certificate": certificate}
        if certificate is None:
            self.loop.call_later(STRANGER_TIMEOUT_S, _cut, inner)
        super().connection_made(inner)
        if self.early:
            super().data_received(bytes(self.early))

    async def _encrypted(self, transport: asyncio.Transport, address: str) -> asyncio.Transport | None:
        """Return the connection with TLS in it, or nothing if nobody comes in."""
        most = {f"opening from {address}": MOST_OPENING_THERE}
        if not self.places.take(most):
            self._turn_away(transport, address)
            return None
        try:
            return await self.loop.start_tls(
                transport, self, self.tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
        except (OSError, ConnectionError) as fault:  # ssl.SSLError is an OSError
            reason = getattr(fault, "reason", None) or type(fault).__name__
            self.tell(address, f"no TLS of this federation ({reason})")
            return None
        finally:
            self.places.give_back(most)

    def _turn_away(self, transport: asyncio.Transport, address: str) -> None:
        self.tell(address, "too many connections")
        transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.held:
            super().data_received(data)
        else:
            self.early += data  # it came with the end of the handshake

    def connection_lost(self, exc: Exception | None) -> None:
        if self.held:
            self.places.give_back(self.held)
            super().connection_lost(exc)


def _cut(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.abort()
