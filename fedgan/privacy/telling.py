"""What a site's data protection officer reads: what is spent and left, and what a planned run would take."""

import math
from collections.abc import Sequence

from fedgan.privacy.accounting import Releases, epsilon_of
from fedgan.privacy.build import Length, build_mechanism
from fedgan.privacy.central import SiteNoise
from fedgan.privacy.ledger import Ledger
from fedgan.privacy.plan import Draws, fewest_releases, noise_to_signal, smallest_cohort
from fedgan.settings import PatientPrivacy, SitePrivacy


def tell_account(ledger: Ledger, one_round: Releases | None = None) -> Sequence[str]:
    """Return the site's account in lines: spent and left, by run, and after one more round, if not given as the last.

    Raises:
        LedgerError: the ledger cannot be trusted or read.
    """
    charged = [line for line in ledger.lines() if line.settles is None]
    noisy = [Releases(line.noise, line.rate, line.steps) for line in charged if line.noise]
    spent = epsilon_of(noisy, delta=ledger.delta)
    of = f"epsilon {spent:.3g} of {ledger.ceiling:g} spent, {max(0.0, ledger.ceiling - spent):.3g} left"
    if unpromised := len(charged) - len(noisy):
        of = f"NO PROMISE HOLDS, {unpromised} task(s) were trained without one; the others spent epsilon {spent:.3g}"
    lines = [f"{ledger.whose}: {of}, at delta {ledger.delta:g}"]
    lines += [
        f"  {name}: {'no promise' if math.isinf(epsilon) else f'{epsilon:.3g} by itself'}"
        for name, epsilon in ledger.by_federation().items()
    ]
    if one_round is None and noisy:
        one_round = noisy[-1]
    if one_round and not unpromised:
        after = ledger.spent(one_round)
        granted = "" if after <= ledger.ceiling else ", over the ceiling: it would be refused"
        lines.append(f"  one more round of {one_round.count} noisy steps: {after:.3g} spent{granted}")
    return lines


def tell_plan(settings: PatientPrivacy, length: Length, *, num_parameters: int) -> Sequence[str]:
    """Return in lines what the settings' epsilon takes over a run of that length, and for how many patients it is.

    Args:
        settings: what is to be promised.
        length: of the run.
        num_parameters: of the larger player, as far as they are trained.

    Raises:
        SettingsError: no noise is enough.
    """
    mechanism = build_mechanism(settings, length)
    draws = Draws(settings.cohort, settings.patients, length.releases)
    ratio = noise_to_signal(mechanism.noise, draws=draws, num_parameters=num_parameters)
    enough = smallest_cohort(
        settings.epsilon, patients=settings.patients, releases=length.releases, num_parameters=num_parameters
    )
    steps = fewest_releases(
        settings.epsilon,
        delta=settings.delta,
        cohort=settings.cohort,
        patients=settings.patients,
        num_parameters=num_parameters,
    )
    return [
        f"epsilon {settings.epsilon:g} at delta {settings.delta:g} over {length.releases} noisy steps",
        f"  noise: {mechanism.noise:.3g} times the clipping norm; a patient is drawn with probability {draws.rate:.3g}",
        f"  noise beside the longest signal there can be: {ratio:.3g} times",
        "  no number of patients makes sense of it: draw more at once, train fewer parameters, or spend more"
        if enough is None
        else f"  sensible from about {enough} training patients a site with draws of {settings.patients}",
        f"  no number of noisy steps makes sense of it for {settings.cohort} training patients"
        if steps is None
        else f"  sensible from about {steps} noisy steps for {settings.cohort} training patients",
    ]


def tell_site_plan(settings: SitePrivacy, noise: SiteNoise, *, rounds: int, num_parameters: int) -> Sequence[str]:
    """Return in lines what the settings' epsilon at site level takes over a run, and for how many sites it is.

    Args:
        settings: what is to be promised.
        noise: which keeps that.
        rounds: of the run.
        num_parameters: of the larger player, as far as they leave a site.
    """
    ratio = noise.noise_to_signal(rounds=rounds, num_parameters=num_parameters)
    enough = math.ceil(noise.noise * math.sqrt(num_parameters / rounds))
    return [
        f"site-level epsilon {settings.epsilon:g} at delta {settings.delta:g} over {rounds} rounds, of no patient",
        f"  noise: {noise.noise:.3g} times the most by which one of {settings.sites} sites can move a player",
        f"  noise beside the longest signal there can be: {ratio:.3g} times",
        f"  sensible from about {enough} sites that count alike"
        + ("" if settings.sites >= enough else "; with so few, one site hides only where nothing is learned"),
    ]
