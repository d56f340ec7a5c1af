"""One site: it answers a task with an update of the model, trained on its own scans, which stay where they are."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, cast

import torch
from torch import Tensor

from fedgan.cohort.batches import batch_of_patient, draw_batches, patients_of
from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort, blank_like
from fedgan.errors import CohortError, Diverged, FedganError, ModelError
from fedgan.federated.compression import Encoding, with_feedback
from fedgan.federated.memory import MOMENTS, OWN, RESIDUAL, Memory, NoMemory, part_of
from fedgan.federated.sharing import Sharing
from fedgan.gan.augmentation import vary
from fedgan.gan.method import Method
from fedgan.gan.training import OnStep, Players, moments_of, players_for, take_over, train
from fedgan.privacy.dp_sgd import train_privately
from fedgan.privacy.promise import Promise
from fedgan.records import Answer, Batch, RoundTask, ScanCounts, SiteFailure, SiteUpdate, Weights
from fedgan.streams import generator_for

log = logging.getLogger(__name__)

Validate = Callable[[Method, Cohort], Mapping[str, float]]
"""Scores of the received model on the site's validation scans, each in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a site trains in every round of a run, and what it sends."""

    sharing: Sharing
    encodings: Mapping[str, Encoding]
    """In how many bits each tensor of an update travels, where that is not as it is."""
    validate: Validate
    seed: int
    rounds: int
    """Rounds of the whole run, over which the learning rates fall."""
    batch_size: int
    augment: bool
    critic_steps: int
    learning_rate: float
    critic_learning_rate: float
    last_rate: float
    """Share of the learning rates in the last round."""
    betas: tuple[float, float]
    bfloat16: bool
    prox: tuple[float, float] = (0.0, 0.0)
    """Pull of the received weights on the generators and on the critics."""
    moments: Literal["reset", "second", "both"] = "reset"
    """Which of Adam's moments outlive a round."""
    promise: Promise | None = None
    """What each training patient is promised; then nothing leaves that is not noisy, but the epsilon spent."""

    def rate_in(self, number: int) -> float:
        """Return the share of the learning rates in round ``number`` (from 0): 1 at first, ``last_rate`` at last."""
        return 1 - (1 - self.last_rate) * min(1.0, number / max(1, self.rounds - 1))


class Site:
    """One institution's scans; all that it remembers from round to round is in its memory."""

    def __init__(
        self,
        name: str,
        cohort: Cohort,
        networks: Method,
        recipe: Recipe,
        *,
        memory: Memory | None = None,
        on_step: OnStep = lambda step, losses: None,
    ) -> None:
        """Take the scans of all splits, and networks of the model's shape, whose weights each task replaces.

        In a simulation sites take turns with the same ``networks``. Without a ``memory`` a site begins every round with
        what it is sent.
        """
        self.name = name
        self.networks = networks
        self.recipe = recipe
        self.memory = memory or NoMemory()
        self.train_cohort = cohort.split("train")
        self.val_cohort = cohort.split("val")
        counts = count_scans(self.train_cohort)
        self.counts = counts if recipe.promise is None else ScanCounts(1, 1, 1, (1,) * len(counts.by_disease))
        self.on_step = on_step

    def answer(self, task: RoundTask) -> Answer:
        """Score the task's model, train it, and return by how much it moved.

        A refusal becomes a ``SiteFailure`` that names its class alone; its words stay in the site's own log.
        """
        try:
            return self._train(task)
        except FedganError as refusal:
            log.error("site %s did not train in round %d: %s", self.name, task.model.round + 1, refusal)  # noqa: TRY400
            return SiteFailure(self.name, task.model.round, type(refusal).__name__)

    def _train(self, task: RoundTask) -> SiteUpdate:
        """Load, validate or charge, train, subtract."""
        promise = self.recipe.promise
        before, number = task.model.weights, task.model.round
        since, kept = self.memory.recall(number)
        load_weights(self.networks, {**before, **self.recipe.sharing.still_own(part_of(kept, OWN), since, number)})
        scores = {} if promise else self.recipe.validate(self.networks, self.val_cohort)
        metrics = {f"validation/{name}": score for name, score in scores.items()}
        if not task.local_steps:
            return SiteUpdate(self.name, task.model.round, task.model.digest, {}, self.counts, metrics)
        if not self.counts.labelled:
            raise CohortError(self.name, ["no training scan is labelled normal or abnormal"])
        charge = promise.reserve(task) if promise else 0  # before the first gradient: a crash must never hide it
        losses, moments = self._take_steps(task, part_of(kept, MOMENTS))
        self.recipe.validate(self.networks, self._any_scan())  # weights that draw no map must not leave
        after = weights_of(self.networks)
        sent = self.recipe.sharing.sent_after(number)
        own = {name: after[name] for name in self.recipe.sharing.own_after(number)}
        delta = {name: after[name] - before[name] for name in before if name in sent}
        residual = part_of(kept, RESIDUAL)
        delta, lost = with_feedback(delta, residual, self.recipe.encodings)
        remembered = _named(OWN, own) | _named(MOMENTS, moments) | _named(RESIDUAL, {**residual, **lost})
        self._refuse_divergence({**delta, **remembered})  # in its memory, it would spoil every later round
        self.memory.keep(number + 1, remembered)
        metrics |= {f"loss/{name}": loss for name, loss in losses.items()}
        if promise:
            metrics = {f"privacy/{name}": figure for name, figure in promise.settle(charge, delta).items()}
        return SiteUpdate(
            site=self.name,
            round=number,
            digest=task.model.digest,
            delta=delta,
            counts=self.counts,
            metrics=metrics,
        )

    def _take_steps(self, task: RoundTask, moments: Weights) -> tuple[Mapping[str, float], Weights]:
        """Take the task's local steps; return the mean losses and the moments to keep."""
        recipe = self.recipe
        rate = recipe.rate_in(task.model.round)
        players = players_for(
            self.networks,
            learning_rate=rate * recipe.learning_rate,
            critic_learning_rate=rate * recipe.critic_learning_rate,
            bfloat16=recipe.bfloat16,
            betas=recipe.betas,
            prox=recipe.prox,
        )
        take_over(players, moments, first=recipe.moments == "both")
        losses = (self._learn_privately if recipe.promise else self._learn)(task, players)
        return losses, {} if recipe.moments == "reset" else moments_of(players)

    def _learn(self, task: RoundTask, players: Players) -> Mapping[str, float]:
        """Take steps on batches from the run's own stream; return the mean losses."""
        recipe, rng = self.recipe, generator_for(self.recipe.seed, "site", self.name, task.model.round)
        batches = draw_batches(self.train_cohort, batch_size=recipe.batch_size, rng=rng, flip=True)
        drawn = islice(batches, task.local_steps * recipe.critic_steps)
        seen = (self._seen(batch, rng) for batch in drawn)
        return train(self.networks, players, seen, rng=rng, critic_steps=recipe.critic_steps, on_step=self.on_step)

    def _learn_privately(self, task: RoundTask, players: Players) -> Mapping[str, float]:
        """Take steps on patients drawn by chance; return no losses."""
        mechanism = cast("Promise", self.recipe.promise).mechanism
        patients = [partial(self._patient, rows) for rows in patients_of(self.train_cohort)]
        train_privately(self.networks, players, patients, mechanism, steps=task.local_steps, on_step=self.on_step)
        return {}

    def _patient(self, rows: Sequence[int], rng: torch.Generator) -> Batch:
        return self._seen(batch_of_patient(self.train_cohort, rows, rng=rng), rng)

    def _seen(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Return a batch as the networks get it."""
        device = next(iter(self.networks.generators())).device
        return (vary(batch, rng) if self.recipe.augment else batch).to(device)

    def _refuse_divergence(self, tensors: Weights) -> None:
        """Refuse to send or to remember what is no number.

        Raises:
            Diverged: a value of any tensor is not finite.
        """
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise Diverged(
                f"what site {self.name} has learned is not finite numbers; "
                "the coordinator must start a run with a lower learning rate"
            )

    def _any_scan(self) -> Cohort:
        """Return a training scan to draw a map of; a blank one where no patient may decide whether an answer leaves."""
        return blank_like(self.train_cohort) if self.recipe.promise else self.train_cohort.take([0])


def _named(start: str, tensors: Weights) -> dict[str, Tensor]:
    return {f"{start}{name}": tensor for name, tensor in tensors.items()}


def count_scans(cohort: Cohort) -> ScanCounts:
    """Return how many scans a cohort has, by what they can teach."""
    status = cohort.status
    return ScanCounts(
        normal=int((status == NORMAL).sum()),
        abnormal=int((status == ABNORMAL).sum()),
        unlabelled=int((status == UNLABELLED).sum()),
        by_disease=tuple(int(count) for count in cohort.diseases[status == ABNORMAL].sum(dim=0)),
    )


def weights_of(networks: Method) -> Weights:
    """Return a copy of the named tensors of ``networks``, on the CPU."""
    return {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in networks.state_dict().items()
    }


def load_weights(networks: Method, weights: Weights) -> None:
    """Put ``weights`` into ``networks``.

    Raises:
        ModelError: a name or shape differs.
    """
    try:
        networks.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ModelError(
            "the weights do not fit the settings' networks; use them with the settings they had"
        ) from error
