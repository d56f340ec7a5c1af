"""The coordinator's TLS, so that who fails to come in is seen: uvicorn's protocol with a handshake of its own.

A site shows its certificate in the handshake (mutual TLS); who has none yet may come in without, and the fence then
decides what for. Whoever shows one of another authority, or speaks no TLS at all, does not come in.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.home import Home

HANDSHAKE_TIMEOUT_S = 15.0

STRANGER_TIMEOUT_S = 60.0
"""How long a connection without a certificate may last: long enough to ask to be signed, too short to be in the way."""

MOST_CONNECTIONS = 1024

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


class _Door(HttpToolsProtocol):
    """One connection: TCP first, then TLS, then what uvicorn makes of it."""

    tls: ssl.SSLContext
    tell: Turned
    opened = False
    opening: asyncio.Task[None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.pause_reading()  # what comes first is for TLS
        self.early = bytearray()
        self.opening = self.loop.create_task(self._open(transport))

    async def _open(self, transport: asyncio.Transport) -> None:
        address = str((transport.get_extra_info("peername") or ("unknown",))[0])
        try:
            inner = await self.loop.start_tls(
                transport, self, self.tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
        except (OSError, ConnectionError) as fault:  # ssl.SSLError is an OSError
            self.tell(address, getattr(fault, "reason", None) or type(fault).__name__)
            return
        if inner is None or inner.is_closing():
            return
        certificate = cast(ssl.SSLObject, inner.get_extra_info("ssl_object")).getpeercert(binary_form=True)
        self.app_state = {**self.app_state, "certificate": certificate}
        if certificate is None:
            self.loop.call_later(STRANGER_TIMEOUT_S, _cut, inner)
        self.opened = True
        super().connection_made(inner)
        if self.early:
            super().data_received(bytes(self.early))

    def data_received(self, data: bytes) -> None:
        if self.opened:
            super().data_received(data)
        else:
            self.early += data  # it came with the end of the handshake

    def connection_lost(self, exc: Exception | None) -> None:
        if self.opened:
            super().connection_lost(exc)


def _cut(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.abort()
