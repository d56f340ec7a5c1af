"""What of the coordinator can be reached from outside: a site's calls to Flower, and a few paths of our own.

Flower's own server has, on one port, the calls of sites and those of whoever runs the federation, and asks nobody who
they are before it runs their code at every hospital. So it listens on the loopback, and here is the only way in. What
is not named here is not there; who is not who a certificate says is refused, and that is one line of the audit.

An answer's status is chosen by what Flower's SuperNode makes of it: on 401 it ends, on 502 and 503 it asks again, on
403 it believes the run to be over.
"""

import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route, Router

from fedgan.audit import Audit
from fedgan.errors import InvitationRefused, RequestRefused, RunFolderError
from fedgan.forward import Client, Receive, Scope, Send, answer
from fedgan.settings.types import Frozen
from server.authority import Enrolment
from server.ceilings import Ceiling
from server.fleet import FLEET, NO_CERTIFICATE, Fleet, Refusal
from server.registry import Member

log = logging.getLogger(__name__)

STRANGERS = frozenset({"/federation/enrolment", "/federation/certificate"})
"""What may be asked without a certificate: there one gets it."""

MOST_OWN_BYTES = 64 * 1024

Endpoint = Callable[[str, Request], Awaitable[Response]]
"""From the site, as its certificate says, and its request to an answer."""


class SignatureRequest(Frozen):
    """What a site sends to be signed."""

    secret: str = Field(max_length=64)
    request: str = Field(max_length=8192)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """How often who may ask."""

    site: Ceiling
    stranger: Ceiling
    noted: Ceiling
    """How many refusals of one address become lines of the audit; and of all together."""

    @classmethod
    def usual(cls) -> "Ceilings":
        """Return what a federation of hospitals needs, with room: an update has hundreds of objects."""
        return cls(
            site=Ceiling(per_s=200, burst=4000),
            stranger=Ceiling(per_s=1, burst=30),
            noted=Ceiling(per_s=0.5, burst=60),
        )


class Fence:
    """An ASGI application."""

    def __init__(
        self,
        enrolment: Enrolment,
        audit: Audit,
        link: Client,
        link_url: str,
        *,
        home: Path,
        routes: Mapping[str, Endpoint] | None = None,
    ) -> None:
        """Take whom to ask about sites, where to write, the SuperLink behind, and the federation's folder.

        ``routes`` are more paths below ``/federation/`` for sites.
        """
        self._enrolment = enrolment
        self._audit = audit
        self._unnoted = 0
        self.fleet = Fleet(link, link_url, home, enrolment.registry)
        self.ceilings = Ceilings.usual()
        own = [
            Route("/federation/enrolment", self._enrol, methods=["POST"]),
            Route("/federation/certificate", self._hand_over, methods=["GET"]),
            Route("/federation/hello", self._hello, methods=["GET"]),
            Route("/federation/leave", self._leave, methods=["POST"]),
            *(Route(path, _for_site(endpoint), methods=["GET"]) for path, endpoint in (routes or {}).items()),
        ]
        self._own = Router(own)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, hand on, or refuse one request."""
        path, certificate = scope["path"], scope["state"].get("certificate")
        member = self._enrolment.registry.member(certificate) if certificate else None
        try:
            if path == "/health" and scope["method"] == "GET":
                await answer(send, 200)
            elif path in FLEET and scope["method"] == "POST":
                await self._fleet(scope, receive, send, member)
            elif any(route.matches(scope)[0] is Match.FULL for route in self._own.routes):
                await self._federation(scope, receive, send, member)
            else:
                await self.refuse(scope, send, 404, "there is no such path", member)
        except Refusal as refusal:
            await self.refuse(scope, send, refusal.status, str(refusal), member)

    def turned(self, address: str, reason: str) -> None:
        """Note that nobody came in from ``address``."""
        self._note(address, reason=reason)

    async def refuse(self, scope: Scope, send: Send, status: int, reason: str, member: Member | None) -> None:
        """Refuse a request, and say so in the audit: at which address, of whom if known, and why."""
        path = scope["path"][:80].encode("ascii", "replace").decode()
        facts = {"site": member.site} if member else {}
        self._note(_address(scope), path=path, status=status, reason=reason, **facts)
        response = JSONResponse({"error": reason}, status, {"connection": "close"})
        await response(scope, _nothing_more, send)

    def _note(self, address: str, **facts: object) -> None:
        if not (self.ceilings.noted.allows(address) and self.ceilings.noted.allows("everybody")):
            self._unnoted += 1
            return
        more = {"unnoted": self._unnoted} if self._unnoted else {}
        self._unnoted = 0
        log.warning("refused %s: %s", address, facts["reason"])
        try:
            self._audit.record("refused", address=address, **facts, **more)
        except RunFolderError as failure:  # refused it is all the same
            log.error("%s", failure)  # noqa: TRY400 - the message says it all

    async def _fleet(self, scope: Scope, receive: Receive, send: Send, member: Member | None) -> None:
        if member is None:
            raise Refusal(401, NO_CERTIFICATE)
        elif _flower_key(scope) != member.key:
            raise Refusal(401, "the key is not the certificate's")
        elif member.node is None:  # approved just now: Flower will soon know it too
            await answer(send, 503)
        elif not self.ceilings.site.allows(member.site):
            raise Refusal(503, "too many requests")
        elif await self.fleet.hand_on(scope, receive, send, member) == 413:
            self._note(_address(scope), path=scope["path"], status=413, reason="too long", site=member.site)

    async def _federation(self, scope: Scope, receive: Receive, send: Send, member: Member | None) -> None:
        headers = dict(scope["headers"])
        if member is None and scope["path"] not in STRANGERS:
            raise Refusal(401, NO_CERTIFICATE)
        elif not self.ceilings.stranger.allows(member.site if member else _address(scope)):
            raise Refusal(429, "too many requests")
        elif b"transfer-encoding" in headers or int(headers.get(b"content-length", 0)) > MOST_OWN_BYTES:
            raise Refusal(413, "too long, or of unknown length")
        else:
            scope["state"]["member"] = member
            await self._own(scope, receive, send)

    async def _enrol(self, request: Request) -> Response:
        try:
            asked = SignatureRequest.model_validate_json(await request.body())
            await run_in_threadpool(self._enrolment.receive, asked.secret, asked.request.encode())
        except (ValidationError, RequestRefused) as fault:
            raise Refusal(400, "no request that can be signed") from fault
        except InvitationRefused as fault:
            raise Refusal(403, str(fault)) from fault
        return JSONResponse({"state": "waiting"}, status_code=202)

    async def _hand_over(self, request: Request) -> Response:
        secret = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            admission = await run_in_threadpool(self._enrolment.collect, secret)
        except InvitationRefused as fault:
            raise Refusal(403, str(fault)) from fault
        if admission is None:
            return JSONResponse({"state": "waiting"}, status_code=202)
        return JSONResponse({"certificate": admission.certificate, "release_key": admission.release_key})

    async def _hello(self, request: Request) -> Response:
        member: Member = request.state.member
        return JSONResponse(
            {
                "site": member.site,
                "time": datetime.now(UTC).isoformat(),
                "until": member.until.isoformat(),
                "fedgan": version("fedgan"),
                "flwr": version("flwr"),
            }
        )

    async def _leave(self, request: Request) -> Response:
        await run_in_threadpool(self._enrolment.end, request.state.member.site, "left")
        return Response(status_code=204)


def _for_site(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def answer_site(request: Request) -> Response:
        member: Member = request.state.member
        return await endpoint(member.site, request)

    return answer_site


async def _nothing_more() -> dict[str, str]:
    return {"type": "http.disconnect"}


def _address(scope: Scope) -> str:
    return str(scope["client"][0]) if scope["client"] else "unknown"


def _flower_key(scope: Scope) -> str:
    """Return the key with which the SuperNode says that it signs, which Flower then checks."""
    sent = [value for name, value in scope["headers"] if name == b"flwr-public-key"]
    try:
        return base64.b64decode(sent[0], validate=True).decode() if len(sent) == 1 else ""
    except (binascii.Error, UnicodeDecodeError):
        return ""
