"""Before a private run: what the settings' epsilon takes, and for how many patients it makes sense."""

from collections.abc import Sequence

from fedgan.assembly import networks_for
from fedgan.config import load
from fedgan.errors import SettingsError
from fedgan.privacy.build import Length
from fedgan.privacy.telling import tell_plan
from fedgan.settings import Deployment, PatientPrivacy


def plan(overrides: Sequence[str]) -> Sequence[str]:
    """Return in lines what a run with these settings promises, and what that costs.

    Raises:
        SettingsError: the settings are wrong, or ask for no privacy.
    """
    settings = load("server", Deployment, ["privacy=patient", *overrides])
    if not isinstance(settings.privacy, PatientPrivacy):
        raise SettingsError("privacy: nothing is promised, so that there is nothing to plan; leave privacy=none out")
    networks = networks_for(settings)
    players = (networks.generators(), networks.critics())
    largest = max(sum(parameter.numel() for parameter in player) for player in players)
    length = Length(settings.rounds, settings.local_steps, settings.model.critic_steps)
    return tell_plan(settings.privacy, length, num_parameters=largest)
