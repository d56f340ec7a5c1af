"""One site: it answers a task with an update of the model, trained on its own scans, which stay where they are."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch

from fedgan.cohort.batches import draw_batches
from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort
from fedgan.errors import CohortError, FedganError, ModelError
from fedgan.gan.augmentation import vary
from fedgan.gan.method import Method
from fedgan.gan.training import OnStep, players_for, train
from fedgan.records import Answer, RoundTask, ScanCounts, SiteFailure, SiteUpdate, Weights, digest_of
from fedgan.streams import generator_for

log = logging.getLogger(__name__)

Validate = Callable[[Method, Cohort], Mapping[str, float]]
"""Scores of the received model on the site's validation scans, each in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a site trains in every round of a run."""

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

    def rate_in(self, number: int) -> float:
        """Return the share of the learning rates in round ``number`` (from 0): 1 at first, ``last_rate`` at last."""
        return 1 - (1 - self.last_rate) * min(1.0, number / max(1, self.rounds - 1))


class Site:
    """One institution's scans; it remembers nothing that matters between rounds."""

    def __init__(
        self,
        name: str,
        cohort: Cohort,
        networks: Method,
        recipe: Recipe,
        *,
        validate: Validate,
        on_step: OnStep = lambda step, losses: None,
    ) -> None:
        """Take the scans of all splits, and networks of the model's shape, whose weights each task replaces.

        In a simulation sites take turns with the same ``networks``.
        """
        self.name = name
        self.networks = networks
        self.recipe = recipe
        self.train_cohort = cohort.split("train")
        self.val_cohort = cohort.split("val")
        self.counts = count_scans(self.train_cohort)
        self.validate = validate
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
        """Load, validate, train, subtract."""
        before = task.model.weights
        load_weights(self.networks, before)
        metrics = {f"validation/{name}": score for name, score in self.validate(self.networks, self.val_cohort).items()}
        if not task.local_steps:
            return SiteUpdate(self.name, task.model.round, digest_of(before), {}, self.counts, metrics)
        if not self.counts.labelled:
            raise CohortError(self.name, ["no training scan is labelled normal or abnormal"])
        losses = self._take_steps(task)
        self.validate(self.networks, self.train_cohort.take([0]))  # weights that draw no map must not leave
        after = weights_of(self.networks)
        return SiteUpdate(
            site=self.name,
            round=task.model.round,
            digest=digest_of(before),
            delta={name: after[name] - before[name] for name in before},
            counts=self.counts,
            metrics=metrics | {f"loss/{name}": loss for name, loss in losses.items()},
        )

    def _take_steps(self, task: RoundTask) -> Mapping[str, float]:
        """Take the task's local steps and return the mean losses."""
        recipe, rng = self.recipe, generator_for(self.recipe.seed, "site", self.name, task.model.round)
        device = next(iter(self.networks.generators())).device
        rate = recipe.rate_in(task.model.round)
        players = players_for(
            self.networks,
            learning_rate=rate * recipe.learning_rate,
            critic_learning_rate=rate * recipe.critic_learning_rate,
            bfloat16=recipe.bfloat16,
            betas=recipe.betas,
        )
        batches = draw_batches(self.train_cohort, batch_size=recipe.batch_size, rng=rng, flip=True)
        drawn = islice(batches, task.local_steps * recipe.critic_steps)
        seen = ((vary(batch, rng) if recipe.augment else batch).to(device) for batch in drawn)
        return train(self.networks, players, seen, rng=rng, critic_steps=recipe.critic_steps, on_step=self.on_step)


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
