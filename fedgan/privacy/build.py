"""From settings to how a private run draws, clips, adds noise and keeps account, wherever that is done."""

from dataclasses import dataclass
from pathlib import Path

from fedgan.privacy.central import SiteNoise
from fedgan.privacy.dp_sgd import Mechanism
from fedgan.privacy.ledger import Ledger
from fedgan.privacy.plan import Draws, noise_for
from fedgan.settings import PatientPrivacy, SitePrivacy


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run is, from which it follows how often noise is added."""

    rounds: int
    local_steps: int
    """In each round."""
    critic_steps: int
    """In each local step; the generators take one."""

    @property
    def releases(self) -> int:
        """Return the number of noisy gradients of the whole run."""
        return self.rounds * self.local_steps * (self.critic_steps + 1)


def build_mechanism(settings: PatientPrivacy, length: Length) -> Mechanism:
    """Return the mechanism with which a run of that length costs the settings' epsilon.

    Raises:
        SettingsError: no noise is enough.
    """
    draws = Draws(settings.cohort, settings.patients, length.releases)
    return Mechanism(
        noise=noise_for(settings.epsilon, delta=settings.delta, draws=draws),
        clip=settings.clip,
        rate=draws.rate,
        patients=settings.patients,
        critic_steps=length.critic_steps,
    )


def simulated_ledger(settings: PatientPrivacy, *, site: str, folder: Path) -> Ledger:
    """Return the account of a simulated site, of one run alone: what is simulated leaves no hospital."""
    return Ledger.in_folder(folder, site=site, ceiling=settings.ceiling or settings.epsilon, delta=settings.delta)


def build_site_noise(settings: SitePrivacy, *, releases: int) -> SiteNoise:
    """Return the noise with which so many mean steps of a player, of a whole run, cost the settings' epsilon.

    Raises:
        SettingsError: no noise is enough.
    """
    return SiteNoise(
        noise=noise_for(settings.epsilon, delta=settings.delta, draws=Draws(1, 1, releases)),
        clips={"generator": settings.generator_clip, "critic": settings.discriminator_clip},
        sites=settings.sites,
        weights=settings.weights or {},
    )


def coordinators_ledger(settings: SitePrivacy, folder: Path) -> Ledger:
    """Return the coordinator's own account, in ``folder``, of all runs that are charged there."""
    return Ledger.in_folder(folder, site=None, ceiling=settings.ceiling, delta=settings.delta)
