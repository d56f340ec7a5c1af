"""Before a private run: what the settings' epsilon takes, and for how many patients or sites it makes sense."""

from collections.abc import Sequence

from fedgan.assembly import length_of, most_released, networks_for, site_noise_in
from fedgan.config import load
from fedgan.errors import SettingsError
from fedgan.privacy.dp_sgd import trained
from fedgan.privacy.telling import tell_plan, tell_site_plan
from fedgan.settings import Deployment, PatientPrivacy, SitePrivacy


def plan(overrides: Sequence[str]) -> Sequence[str]:
    """Return in lines what a run with these settings promises, and what that costs.

    Raises:
        SettingsError: the settings are wrong, or ask for no privacy.
    """
    settings = load("server", Deployment, ["privacy=patient", *overrides])
    networks = networks_for(settings)
    noise = site_noise_in(settings, networks)
    match settings.privacy:
        case PatientPrivacy() as promised:
            players = (networks.generators(), networks.critics())
            largest = max(sum(parameter.numel() for parameter in trained(networks, player)) for player in players)
            return tell_plan(promised, length_of(settings), num_parameters=largest)
        case SitePrivacy() as promised if noise:
            released = most_released(settings, networks)
            return tell_site_plan(promised, noise, rounds=settings.rounds, num_parameters=released)
    raise SettingsError("privacy: nothing is promised, so that there is nothing to plan; leave privacy=none out")
