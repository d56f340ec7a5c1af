"""How a site reaches its coordinator: one outgoing connection, by mutual TLS, through the hospital's proxy if any."""

import ssl
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import httpx
from cryptography import x509
from pydantic import AwareDatetime, BaseModel, ValidationError

from client.home import Home
from client.policy import Policy
from fedgan.errors import HomeError, SiteRefused, Unreachable

TIMEOUT_S = 15.0

FEWEST_DAYS = 30
"""For how long a site's certificate holds at least, before somebody is told."""


MOST_SKEW_S = 5.0
"""Flower refuses what a clock signs that is farther ahead."""


class Greeting(BaseModel):
    """What the coordinator says of itself to a site that it knows."""

    site: str
    time: AwareDatetime
    fedgan: str
    flwr: str
    skew_s: float = 0.0
    """By how much its clock and this one differ at least, in seconds; that is not what it says."""

    def obstacle(self) -> str | None:
        """Return what stands between it and this site, and what to do, if anything does."""
        if (self.fedgan, self.flwr) != (here := (version("fedgan"), version("flwr"))):
            return (
                f"the coordinator runs fedgan {self.fedgan} on flwr {self.flwr}, and this site {here[0]} on {here[1]}; "
                "install the coordinator's versions"
            )
        if self.skew_s > MOST_SKEW_S:
            return f"this clock and the coordinator's are {self.skew_s:.0f} s apart; set both by a time server (NTP)"
        return None


def tls_context(home: Home) -> ssl.SSLContext:
    """Return what trusts the federation's authority alone, and shows the site's certificate.

    Raises:
        HomeError: keys or certificates are missing or damaged.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(home.authority)
        context.load_cert_chain(home.certificate, home.key)
    except (OSError, ssl.SSLError) as error:
        raise HomeError("the site's keys or certificates are missing or damaged; enrol again") from error
    return context


def proxy_for(address: str, authority: Path | None) -> httpx.Proxy | None:
    """Return the proxy on the way to ``address``, as the environment names it (HTTPS_PROXY, NO_PROXY).

    ``authority`` is the file of what verifies the proxy itself, if this machine does not know it.
    The coordinator's TLS goes through the proxy untouched: whoever opened it would not have the site's key.
    """
    host = address.rpartition(":")[0].strip("[]")
    url = getproxies().get("https")
    if url is None or host in ("127.0.0.1", "::1", "localhost") or proxy_bypass(host):
        return None
    context = ssl.create_default_context(cafile=authority)
    return httpx.Proxy(url, ssl_context=context if url.startswith("https:") else None)


def dial(address: str, context: ssl.SSLContext, proxy_ca: Path | None, *, timeout_s: float) -> httpx.Client:
    """Return what asks the coordinator at ``address``, through the proxy on the way there if there is one."""
    return httpx.Client(
        base_url=f"https://{address}",
        verify=context,
        proxy=proxy_for(address, proxy_ca),
        timeout=timeout_s,
        trust_env=False,
    )


def no_way_to(address: str, fault: httpx.TransportError, remark: str = "") -> Unreachable:
    """Return that ``address`` cannot be reached, and why."""
    return Unreachable(
        f"{address} cannot be reached ({fault});{remark} is the coordinator up, and does the firewall or proxy let one "
        "outgoing connection there?"
    )


def days_left(home: Home) -> int:
    """Return for how many more days the site's certificate holds; negative if it has expired.

    Raises:
        HomeError: it is missing or damaged.
    """
    try:
        certificate = x509.load_pem_x509_certificate(home.certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise HomeError("the site's certificate is missing or damaged; enrol again") from error
    return (certificate.not_valid_after_utc - datetime.now(UTC)).days


def hello(home: Home, address: str, policy: Policy) -> Greeting:
    """Return what the coordinator says to a site that belongs to its federation.

    Raises:
        SiteRefused: it does not, or no longer.
        Unreachable: there is no coordinator at ``address``, or it is none of this federation.
        HomeError: keys or certificates are missing or damaged.
    """
    before = datetime.now(UTC)
    answer = _ask(home, address, policy, "GET", "/federation/hello")
    after = datetime.now(UTC)
    try:
        said = Greeting.model_validate_json(answer.content)
    except ValidationError as fault:
        raise _no_coordinator(address, answer) from fault
    skew_s = max((before - said.time).total_seconds(), (said.time - after).total_seconds(), 0.0)
    return said.model_copy(update={"skew_s": skew_s})


def leave(home: Home, address: str, policy: Policy) -> None:
    """Have the coordinator forget the site's key and certificate; without an invitation there is no way back.

    Raises:
        As ``hello``.
    """
    _ask(home, address, policy, "POST", "/federation/leave")


def _ask(home: Home, address: str, policy: Policy, method: str, path: str) -> httpx.Response:
    try:
        with dial(address, tls_context(home), policy.proxy_ca, timeout_s=TIMEOUT_S) as client:
            answer = client.request(method, path)
    except httpx.TransportError as fault:
        raise no_way_to(address, fault) from fault
    if answer.status_code in (401, 403):
        raise SiteRefused("the coordinator does not let this site in, or no longer; ask whether it has been revoked")
    if not answer.is_success:
        raise _no_coordinator(address, answer)
    return answer


def _no_coordinator(address: str, answer: httpx.Response) -> Unreachable:
    return Unreachable(f"{address} answers as no coordinator does (status {answer.status_code}); is the address right?")
