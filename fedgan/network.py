"""The event loop's own TCP and TLS beneath httpcore, for whoever hands on much: many records of TLS are read at once.

httpcore's own reads one record, 16 KiB, at a time, and each costs a pass through every layer above it.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import httpcore

HELD_BYTES = 2**18
"""What may have arrived unread before a sender is made to wait."""


class Stream(httpcore.AsyncNetworkStream):
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take both ends of it."""
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has arrived, at most so much; nothing at the end."""
        async with _within(timeout, httpcore.ReadTimeout, httpcore.ReadError):
            return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send ``buffer``."""
        async with _within(timeout, httpcore.WriteTimeout, httpcore.WriteError):
            self._writer.write(buffer)
            await self._writer.drain()

    async def aclose(self) -> None:
        """Close it without a word to the other end, which has had all that it will get."""
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Self:
        """Go on in TLS."""
        try:
            async with _within(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except BaseException:
            self._writer.transport.abort()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - as httpcore has it
        """Return whether an idle connection has ended, and what asyncio knows of it."""
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.is_closing() or self._reader.exception() is not None
        return self._writer.get_extra_info(info)


class Network(httpcore.AsyncNetworkBackend):
    """Connections of the running event loop."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> Stream:
        """Connect to ``host``."""
        async with _within(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
            ends = await asyncio.open_connection(host, port, limit=HELD_BYTES, happy_eyeballs_delay=0.25)
            return Stream(*ends)

    async def sleep(self, seconds: float) -> None:
        """Let others run."""
        await asyncio.sleep(seconds)


@asynccontextmanager
async def _within(
    timeout: float | None, late: type[httpcore.TimeoutException], broken: type[httpcore.NetworkError]
) -> AsyncIterator[None]:
    """Bound what is done, and name its faults as httpcore does.

    Raises:
        TimeoutException: as ``late``, after ``timeout`` seconds.
        NetworkError: as ``broken``: the connection, or its TLS, fails.
    """
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as fault:
        raise late from fault
    except (OSError, EOFError) as fault:  # ssl.SSLError is an OSError
        raise broken(str(fault)) from fault
