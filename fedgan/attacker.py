"""What an attacker learns of a simulated run: who is left out of it before it starts, and attacks on it at its end.

The attacks themselves are in ``fedgan.privacy.attacks``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from pydantic import TypeAdapter
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from fedgan.assembly import first_model, length_of
from fedgan.audit import Audit
from fedgan.cohort.batches import batch_of_patient, patients_of
from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort
from fedgan.config import load
from fedgan.errors import PromiseBroken, RunFolderError
from fedgan.federated.site import load_weights, weights_of
from fedgan.gan.build import build_networks, choose_device
from fedgan.gan.method import Method
from fedgan.privacy.attacks import Step, best_guess, losses_of, member_scores, most_shown, psnr, reconstruct, toss
from fedgan.privacy.build import build_mechanism
from fedgan.privacy.dp_sgd import Mechanism, noisy_sum
from fedgan.records import Batch, Weights
from fedgan.results.bootstrap import Bootstrap
from fedgan.results.metrics import Attacks, Estimate, Inversion, Membership
from fedgan.results.pictures import Recovered
from fedgan.results.scores import area_under_roc, histograms, levels_of
from fedgan.run_folder import RunFolder
from fedgan.settings import PatientPrivacy, Simulation
from fedgan.streams import generator_for

COINS = "coins.json"
"""In the run's folder: for each site's training patients, by number, whether they are kept; null without a coin."""

ALL_SITES = "all sites"

INVERTED = 2
"""Patients of the first site whose scans are looked for in a gradient."""

Coins = Mapping[str, Sequence[bool | None]]

_FORMAT = TypeAdapter(dict[str, tuple[bool | None, ...]])


def coins_in(folder: RunFolder, cohorts: Mapping[str, Cohort]) -> Coins:
    """Return the run's coins, which are tossed and kept in its folder before it trains.

    Raises:
        RunFolderError: a run that has trained has none, or they are of other patients, or cannot be read or written.
    """
    path = folder.path / COINS
    patients = {site: len(patients_of(cohort.split("train"))) for site, cohort in cohorts.items()}
    if not path.exists() and not folder.history:
        tossed = {site: toss(count) for site, count in patients.items()}
        folder.write(COINS, _FORMAT.dump_json(tossed).decode() + "\n")
    try:
        coins = _FORMAT.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); start another run to attack") from error
    if {site: len(of_site) for site, of_site in coins.items()} != patients:
        raise RunFolderError(f"{path} is of other patients; resume with the scans that the run began with")
    return coins


def without_left_out(cohorts: Mapping[str, Cohort], coins: Coins) -> dict[str, Cohort]:
    """Return the cohorts without the training patients who are left out; as they are, where no coins were tossed."""
    return {site: _without(cohort, coins[site]) if coins else cohort for site, cohort in cohorts.items()}


def _without(cohort: Cohort, coins: Sequence[bool | None]) -> Cohort:
    train = [row for row, split in enumerate(cohort.splits) if split == "train"]
    patients = patients_of(cohort.take(train))
    left_out = {train[row] for rows, kept in zip(patients, coins, strict=True) if kept is False for row in rows}
    return cohort.take([row for row in range(len(cohort)) if row not in left_out])


def attack(
    settings: Simulation, folder: RunFolder, cohorts: Mapping[str, Cohort], coins: Coins, *, number: int
) -> tuple[Attacks, list[Recovered]]:
    """Try on the model of round ``number`` what the settings ask for.

    Args:
        settings: of the run.
        folder: of the run, with that round.
        cohorts: all scans, those of patients who were left out among them.
        coins: by which they were.
        number: of the round that is the result.

    Returns:
        What the attacks found, and pictures of the scans that were recovered.

    Raises:
        ModelError: the round is not kept, or damaged.
        SettingsError: no noise is enough for what a private run of that length promises, or the model that the run
            started from is gone.
    """
    privacy = _privacy_of(settings)
    mechanism = build_mechanism(privacy, length_of(settings))
    networks = build_networks(
        settings.model,
        num_diseases=len(settings.data.diseases),
        seed=settings.seed,
        device=choose_device(settings.device),
        one_patient=True,
    )
    load_weights(networks, first_model(settings).weights)
    cast("nn.Module", networks).eval()
    membership, recovered = {}, []
    if settings.tosses_coins:
        told = _tell_members(networks, folder.kept(number).weights, cohorts, coins)
        bootstrap = Bootstrap(settings.bootstrap, settings.seed)
        membership = _membership(told, folder.epsilon_spent(), delta=privacy.delta, bootstrap=bootstrap)
    if settings.attack in ("inversion", "all"):
        site, cohort = next(iter(without_left_out(cohorts, coins).items()))
        train = cohort.split("train")
        chosen = _to_invert(train, generator_for(settings.seed, "inversion"))
        recovered = [
            _recover(networks, mechanism, train, row, name=f"{site}, scan {place:02d}")
            for place, row in enumerate(chosen, start=1)
        ]
    found = Attacks(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        noise=mechanism.noise,
        membership=membership,
        inversions=tuple(inversion for inversion, _ in recovered),
    )
    return found, [picture for _, picture in recovered]


def check_promises(found: Attacks, audit: Audit) -> None:
    """Check that no more is told of any site's patients than was promised to them.

    Raises:
        PromiseBroken: more is; the audit says so too.
    """
    broken = {
        site: f"epsilon {told.epsilon_promised:.3g} was promised, and it is at least {told.epsilon_at_least:.3g}"
        for site, told in found.membership.items()
        if told.epsilon_promised is not None and told.epsilon_at_least > told.epsilon_promised
    }
    if broken:
        audit.record("promise broken", where=list(broken))
        said = "; ".join(f"{site}: {words}" for site, words in broken.items())
        raise PromiseBroken(f"{said}; give the model to nobody, and tell fedgan's maintainers")


def in_words(found: Attacks) -> str:
    """Return in one line what was found, of all sites together and of the scan that was recovered best."""
    said = []
    for told in list(found.membership.values())[-1:]:
        promised = "" if told.epsilon_promised is None else f", {told.epsilon_promised:.3g} promised"
        shown = f"of {told.epsilon_shown_at_most:.3g} that could be shown"
        least = f"epsilon is at least {told.epsilon_at_least:.3g}, {shown}{promised}"
        said.append(f"right in {told.right} of {told.guesses} guesses about {told.patients} patients, so {least}")
    if found.inversions:
        best = max(found.inversions, key=lambda inversion: (inversion.tells, inversion.plain))
        private = f"from a private gradient to {best.private:.1f} dB" if best.tells else "too weak to tell of privacy"
        said.append(f"recovers a scan to {best.plain:.1f} dB, {private}")
    return "; ".join(said)


def _privacy_of(settings: Simulation) -> PatientPrivacy:
    """Return the run's private settings, or those that a private run would have."""
    if isinstance(settings.privacy, PatientPrivacy):
        return settings.privacy
    return cast("PatientPrivacy", load("simulate", Simulation, ["privacy=patient"]).privacy)


@dataclass(frozen=True, slots=True)
class _Told:
    """How like one who was trained on each patient of a site looks, and whether he was; both (P,)."""

    scores: Tensor
    kept: Tensor


def _tell_members(networks: Method, trained: Weights, cohorts: Mapping[str, Cohort], coins: Coins) -> dict[str, _Told]:
    """Score the patients of each site for whom a coin was tossed; ``networks`` are as training begins, and so again."""
    first, device = weights_of(networks), next(iter(networks.generators())).device
    told = {}
    for site, cohort in cohorts.items():
        train = cohort.split("train")
        pairs = zip(patients_of(train), coins[site], strict=True)
        tried = [(rows, kept) for rows, kept in pairs if kept is not None]
        patients = [partial(_scans_of, train, rows, device) for rows, _ in tried]
        kinds = [frozenset(train.status[rows].tolist()) for rows, _ in tried]
        before = losses_of(networks, patients)
        load_weights(networks, trained)
        scores = member_scores(before, losses_of(networks, patients), kinds)
        load_weights(networks, first)
        told[site] = _Told(scores, torch.tensor([kept for _, kept in tried], dtype=torch.bool))
    return told


def _scans_of(cohort: Cohort, rows: Sequence[int], device: torch.device, rng: torch.Generator) -> Batch:
    return batch_of_patient(cohort, rows, rng=rng).to(device)


def _membership(
    told: Mapping[str, _Told], promised: Mapping[str, float], *, delta: float, bootstrap: Bootstrap
) -> dict[str, Membership]:
    """Return how well the patients of each site, and of all, are told; promised is what a site says it spent."""
    everyone = {site: (of_site, promised.get(site)) for site, of_site in told.items()}
    if len(told) > 1:
        scores, kept = (torch.cat([getattr(each, part) for each in told.values()]) for part in ("scores", "kept"))
        everyone[ALL_SITES] = _Told(scores, kept), max(promised.values(), default=None)
    found = {}
    for name, (each, epsilon) in everyone.items():
        guesses, bound = best_guess(each.scores, each.kept, delta=delta)
        found[name] = Membership(
            patients=guesses.patients,
            kept=int(each.kept.sum()),
            guesses=guesses.made,
            right=guesses.right,
            auroc=_auroc(each, bootstrap),
            epsilon_at_least=bound,
            epsilon_shown_at_most=most_shown(guesses.patients, delta=delta),
            epsilon_promised=epsilon,
        )
    return found


def _auroc(told: _Told, bootstrap: Bootstrap) -> Estimate | None:
    kept, scores = told.kept.numpy(), told.scores.numpy()
    if kept.all() or not kept.any():
        return None
    sums = histograms(scores, [kept, ~kept], np.arange(len(kept)), levels_of(scores, kept))
    return bootstrap.estimate(area_under_roc, sums, value=float(roc_auc_score(kept, scores)))


def _to_invert(cohort: Cohort, rng: torch.Generator) -> list[int]:
    """Return a scan each of some patients, in random order but normal ones first: critics see those themselves."""
    by_patient = [rows[int(torch.randint(len(rows), (), generator=rng))] for rows in patients_of(cohort)]
    shuffled = [by_patient[number] for number in torch.randperm(len(by_patient), generator=rng).tolist()]
    return sorted(shuffled, key=lambda row: bool(cohort.status[row] != NORMAL))[:INVERTED]


def _recover(
    networks: Method, mechanism: Mechanism, cohort: Cohort, row: int, *, name: str
) -> tuple[Inversion, Recovered]:
    """Look for a scan in the gradient of the run's first step on it, as it is and as a private run releases it."""
    device = next(iter(networks.generators())).device
    scan = cohort.images[row : row + 1].to(device)
    step = Step.on(networks, partial(_batch_of, cohort, row), scan)
    gradient = step.gradient(scan).detach()
    plain = reconstruct(step.gradient, gradient, scan)
    private = reconstruct(step.gradient, noisy_sum([gradient], step.moved, mechanism), scan)
    others = [other for other, patient in enumerate(cohort.patients) if patient != cohort.patients[row]]
    mean = cohort.images[others].mean(dim=0, keepdim=True).to(device) if others else torch.zeros_like(scan)
    figures = Inversion(scan=name, plain=psnr(scan, plain), private=psnr(scan, private), mean_scan=psnr(scan, mean))
    return figures, Recovered(name, *(found[0, 0].cpu() for found in (scan, plain, private)))


def _batch_of(cohort: Cohort, row: int, scan: Tensor) -> Batch:
    """Return ``scan`` as a batch, labelled as the one in ``row``."""
    status = int(cohort.status[row])
    return Batch(
        abnormal=scan if status == ABNORMAL else scan[:0],
        normal=scan if status == NORMAL else scan[:0],
        diseases=cohort.diseases[row : row + 1 if status == ABNORMAL else row].to(scan.device),
        unlabelled=scan if status == UNLABELLED else scan[:0],
    )
