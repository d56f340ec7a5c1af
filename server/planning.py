"""Before a private run: what the settings' epsilon takes, and for how many patients or sites it makes sense."""

from collections.abc import Sequence

from fedgan.assembly import networks_for, site_noise_in
from fedgan.config import load
from fedgan.errors import SettingsError
from fedgan.gan.build import larger_player
from fedgan.privacy.build import Length
from fedgan.privacy.telling import tell_plan, tell_site_plan
from fedgan.settings import Deployment, PatientPrivacy, SitePrivacy


def plan(overrides: Sequence[str]) -> Sequence[str]:
    """Return in lines what a run with these settings promises, and what that costs.

    Raises:
        SettingsError: the settings are wrong, or ask for no privacy.
    """
    settings = load("server", Deployment, ["privacy=patient", *overrides])
    networks = networks_for(settings)
    largest, noise = larger_player(networks), site_noise_in(settings, networks)
    match settings.privacy:
        case PatientPrivacy() as promised:
            length = Length(settings.rounds, settings.local_steps, settings.model.critic_steps)
            return tell_plan(promised, length, num_parameters=largest)
        case SitePrivacy() as promised if noise:
            return tell_site_plan(promised, noise, rounds=settings.rounds, num_parameters=largest)
    raise SettingsError("privacy: nothing is promised, so that there is nothing to plan; leave privacy=none out")
