"""The federation's releases, installed as they come while a site takes part."""

import logging
import threading
from collections.abc import Callable

from client.home import Home, Membership
from client.link import dial, tls_context
from client.models import open_models
from client.policy import read_policy
from fedgan.audit import Audit
from fedgan.errors import ModelError, ReleaseUnavailable, SettingsError

LOOK_S = 20.0
"""Between two questions for a newer release."""

LONGEST_PAUSE_S = 600.0
"""Between two attempts after many that failed."""

TIMEOUT_S = 60.0

log = logging.getLogger(__name__)


def install_as_they_come(
    home: Home, membership: Membership, *, say: Callable[[str], None], stop: threading.Event
) -> None:
    """Install each new release, saying so in one line, until ``stop``; after a failure, wait longer and try again.

    Raises:
        HomeError: the site's keys are missing or damaged.
    """
    models, audit, pause = open_models(home), Audit(home.audit), LOOK_S
    proxy_ca = read_policy(home.policy).proxy_ca
    with dial(membership.address, tls_context(home), proxy_ca, timeout_s=TIMEOUT_S) as link:
        while not stop.wait(pause):
            pause = min(2 * pause, LONGEST_PAUSE_S)
            try:
                release = models.install(link, audit, most_bytes=read_policy(home.policy).max_bytes)
            except (ReleaseUnavailable, SettingsError) as fault:
                log.warning("%s", fault)
            except ModelError as refusal:
                say(f"the installed model stays: {refusal}")
            else:
                pause = LOOK_S
                if release:
                    card = release.card
                    say(f"release {card.serial} installed: round {card.round} of {card.rounds} of run {card.run}")
