"""From what a run's settings say to its parts: networks, a site, an aggregation; the same wherever they run."""

from functools import partial
from pathlib import Path

import torch

from fedgan.checkpoint import load_model
from fedgan.cohort.cohort import Cohort
from fedgan.errors import ModelError, SettingsError
from fedgan.federated.build import build_aggregation, build_encodings, build_sharing, trained_alone
from fedgan.federated.central import releases_of
from fedgan.federated.coordinator import Aggregation
from fedgan.federated.memory import FolderMemory
from fedgan.federated.sharing import Sharing
from fedgan.federated.site import Recipe, Site, load_weights, weights_of
from fedgan.federated.tensors import Side, entries
from fedgan.gan.build import build_networks, computes_in_bfloat16, drawing_of
from fedgan.gan.method import Method
from fedgan.gan.training import OnStep
from fedgan.privacy.build import Length, build_mechanism, build_site_noise, coordinators_ledger
from fedgan.privacy.central import SiteAccount, SiteNoise
from fedgan.privacy.ledger import Ledger
from fedgan.privacy.promise import Promise
from fedgan.records import GlobalModel
from fedgan.results.reading import validate
from fedgan.settings import GanFedAvg, PatientPrivacy, Run, SitePrivacy, Training

CPU = torch.device("cpu")


def networks_for(settings: Training, device: torch.device = CPU) -> Method:
    """Return untrained networks, the same on every device."""
    return build_networks(
        settings.model,
        num_diseases=len(settings.data.diseases),
        seed=settings.seed,
        device=device,
        one_patient=isinstance(settings.privacy, PatientPrivacy),
    )


def bfloat16_in(settings: Training, device: torch.device) -> bool:
    """Return whether the settings' arithmetic is bfloat16 on ``device``."""
    if settings.precision == "auto":
        return not isinstance(settings.privacy, PatientPrivacy) and computes_in_bfloat16(device)
    return settings.precision == "bfloat16"


def build_site(  # noqa: PLR0913 - each is a thing of its own that a site has or lacks
    settings: Training,
    name: str,
    cohort: Cohort,
    networks: Method,
    *,
    memory: Path | None = None,
    promise: Promise | None = None,
    on_step: OnStep = lambda step, losses: None,
) -> Site:
    """Return the site ``name``, which trains ``networks``, where they are, on ``cohort`` as the settings say.

    ``memory`` is the folder in which it remembers; without, it begins every round with what it is sent. A private run
    needs the ``promise`` of ``promise_in``.

    Raises:
        SettingsError: the run is private, and the site keeps no ledger; or as ``sharing_in``.
    """
    if promise is None and isinstance(settings.privacy, PatientPrivacy):
        raise SettingsError(f"privacy=patient: site {name} keeps no ledger of what it spends; it must begin one")
    told = settings.aggregation
    recipe = Recipe(
        sharing=sharing_in(settings, networks),
        encodings=build_encodings(settings.compress, networks),
        validate=partial(validate, drawing=drawing_of(settings.model)),
        seed=settings.seed,
        rounds=settings.rounds,
        batch_size=settings.model.batch_size,
        augment=settings.model.augment,
        critic_steps=settings.model.critic_steps,
        learning_rate=settings.model.learning_rate,
        critic_learning_rate=settings.model.critic_learning_rate,
        last_rate=settings.model.last_rate,
        betas=settings.model.betas,
        bfloat16=bfloat16_in(settings, next(iter(networks.generators())).device),
        prox=(told.generator_prox, told.discriminator_prox) if isinstance(told, GanFedAvg) else (0.0, 0.0),
        moments=told.moments if isinstance(told, GanFedAvg) else "reset",
        promise=promise,
    )
    kept = FolderMemory(memory) if memory else None
    return Site(name, cohort, networks, recipe, memory=kept, on_step=on_step)


def promise_in(settings: Training, ledger: Ledger, *, federation: str) -> Promise | None:
    """Return what the settings promise to a site's patients, charged to its ``ledger``; None if nothing to them.

    Raises:
        SettingsError: no noise is enough for it.
    """
    if not isinstance(settings.privacy, PatientPrivacy):
        return None
    return Promise(build_mechanism(settings.privacy, length_of(settings)), ledger, federation)


def length_of(settings: Training) -> Length:
    """Return how long a run is, from which its noise follows."""
    return Length(settings.rounds, settings.local_steps, settings.model.critic_steps)


def sharing_in(settings: Training, networks: Method) -> Sharing:
    """Return which tensors of ``networks`` leave a site, and when.

    Raises:
        SettingsError: a network to be shared is not one of them.
    """
    sharing = build_sharing(
        settings.aggregation,
        networks,
        rounds=settings.rounds,
        local_steps=settings.local_steps,
        num_diseases=len(settings.data.diseases),
    )
    return trained_alone(sharing, networks) if isinstance(settings.privacy, SitePrivacy) else sharing


def site_noise_in(settings: Training, networks: Method) -> SiteNoise | None:
    """Return the noise by which the models shall tell of no one site; None if the settings promise nothing to sites.

    Raises:
        SettingsError: no noise is enough; or as ``sharing_in``.
    """
    if not isinstance(settings.privacy, SitePrivacy):
        return None
    releases = releases_of(sharing_in(settings, networks), entries(networks))
    return build_site_noise(settings.privacy, releases=releases)


def most_released(settings: Training, networks: Method) -> int:
    """Return how many trained numbers of the player that has more of them leave a site.

    Raises:
        As ``sharing_in``.
    """
    found, shared, sizes = entries(networks), sharing_in(settings, networks).every, dict.fromkeys(Side, 0)
    for name, tensor in networks.state_dict().items():
        if name in shared:
            sizes[found[name].side] += tensor.numel()
    return max(sizes.values())


def aggregation_in(settings: Run, networks: Method, *, accounts: Path | None = None) -> Aggregation:
    """Return what combines the updates of ``networks`` as the settings say.

    What is promised to sites is charged to the coordinator's ledger in the folder ``accounts``.

    Raises:
        SettingsError: something is promised to sites, and the coordinator keeps no ledger; or as ``site_noise_in``.
    """
    account, noise = None, site_noise_in(settings, networks)
    if isinstance(settings.privacy, SitePrivacy) and noise:
        if accounts is None:
            raise SettingsError("privacy=site: the coordinator keeps no ledger of what it spends; it must begin one")
        account = SiteAccount(coordinators_ledger(settings.privacy, accounts), settings.name or "simulation", noise)
    sharing = sharing_in(settings, networks)
    return build_aggregation(
        settings.aggregation, settings.server_optimizer, networks, sharing, settings.compress, account
    )


def first_model(settings: Run) -> GlobalModel:
    """Return what the first round trains: untrained networks, or those that the settings start from.

    Raises:
        SettingsError: there is no model to start from, or its networks are not the settings'.
    """
    networks = networks_for(settings)
    if settings.start:
        try:
            load_weights(networks, load_model(settings.start)[0])
        except ModelError as error:
            raise SettingsError(f"start: {error}") from error
    return GlobalModel(0, weights_of(networks))
