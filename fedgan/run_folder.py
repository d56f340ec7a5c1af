"""A run's folder: its settings, kept rounds, history, audit and model, so that any crash leaves the last kept round.

config.yaml             the composed settings
audit.jsonl             what happened, hash-chained
history.json            one record per kept round
rounds/0007.safetensors the last kept round, and the best so far
spool/                  the updates of the round that is being trained
sites/A/                what a simulated site keeps from round to round, if the settings ask for it
model/                  the model for ``fed-client map``: the last kept round until the run has chosen
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any

from pydantic import TypeAdapter

from fedgan.audit import Audit
from fedgan.checkpoint import load_round, save_model, save_round
from fedgan.errors import RunFolderError
from fedgan.federated.memory import FolderMemory, own_of
from fedgan.federated.spool import Spool
from fedgan.records import Answer, Contribution, GlobalModel, SiteFailure, SiteUpdate, Weights
from fedgan.results.metrics import Round, SiteLevel

BEST = ("pixel_ap", "image_auroc")
"""Figures by which rounds are scored, the first that sites have: of maps, or of scans where no site has masks."""

HISTORY = TypeAdapter(tuple[Round, ...])


def validation_score(scores: Mapping[str, Mapping[str, float]], figures: Sequence[str] = BEST) -> float | None:
    """Return the federation's score: the mean over sites of the first of ``figures`` that a site has.

    >>> validation_score({"A": {"pixel_ap": 0.5}, "B": {"pixel_ap": 0.7, "image_auroc": 0.9}})
    0.6
    """
    for name in figures:
        values = [site[name] for site in scores.values() if name in site]
        if values:
            return sum(values) / len(values)
    return None


class RunFolder:
    """The files of one training run (an arm of a comparison is a run of its own)."""

    def __init__(self, path: Path, card: Mapping[str, Any], figures: Sequence[str] = BEST) -> None:
        """Open ``path``, which is made if absent.

        Args:
            path: the run's folder.
            card: describes the model to those who map with it.
            figures: validation figures by which rounds may be compared, best first; the first that sites have is used.

        Raises:
            RunFolderError: the folder cannot be made or its history cannot be read.
        """
        self.path = path
        self.card = card
        self.figures = figures
        self.audit = Audit(path / "audit.jsonl")
        self.spool = Spool(path / "spool")
        self._began = monotonic()
        self.reload()

    def reload(self) -> None:
        """Read the history again, as after another process has trained in this folder.

        Raises:
            RunFolderError: the folder cannot be made or its history cannot be read.
        """
        try:
            (self.path / "rounds").mkdir(parents=True, exist_ok=True)
            history = self.path / "history.json"
            rounds = HISTORY.validate_json(history.read_bytes()) if history.exists() else ()
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.path} cannot be used as a run's folder ({error}); choose another") from error
        self.history = tuple(entry for entry in rounds if entry.round <= self._last_number())

    def memory_of(self, site: str) -> Path:
        """Return the folder in which a simulated site remembers; it is made when there is something to remember."""
        return self.path / "sites" / site

    def latest(self) -> GlobalModel | None:
        """Return the last kept round, or nothing before the first."""
        number = self._last_number()
        return self.kept(number) if number else None

    def kept(self, number: int) -> GlobalModel:
        """Return a kept round: the last, or the best so far.

        Raises:
            ModelError: it is not kept, or damaged.
        """
        return load_round(self._file(number))

    def keep(self, model: GlobalModel, answers: Sequence[Answer], contribution: Contribution) -> None:
        """Keep a round: its history first, then its weights, which make it count.

        Raises:
            RunFolderError: the folder cannot be written; the round before stays loadable.
        """
        self.note_validation(model.round - 1, answers)
        updates = [answer for answer in answers if isinstance(answer, SiteUpdate)]
        failures = {answer.site: answer.reason for answer in answers if isinstance(answer, SiteFailure)}
        now = monotonic()
        entry = Round(
            round=model.round,
            seconds=now - self._began,
            trained=tuple(sorted(update.site for update in updates)),
            failed=failures,
            losses={update.site: _named("loss/", update.metrics) for update in updates},
            validation={},
            traffic={update.site: found for update in updates if (found := _named("traffic/", update.metrics))},
            privacy={update.site: found for update in updates if (found := _named("privacy/", update.metrics))},
            shares={site: dict(of_site) for site, of_site in contribution.shares.items()},
            planned_shares={site: dict(of_site) for site, of_site in contribution.planned.items()},
            site_level=SiteLevel(**asdict(told)) if (told := contribution.site_level) else None,
        )
        self._began = now
        self._write_history((*self.history, entry))
        save_round(self._file(model.round), model)
        save_model(self.path / "model", model, self.card)
        self.audit.record("round kept", round=model.round, trained=entry.trained, failed=failures)
        if fallen := self._fallen(entry):
            self.audit.record("epsilon fell", round=model.round, sites=fallen)
        self._forget({model.round, self.best_round() or model.round})

    def epsilon_spent(self) -> dict[str, float]:
        """Return the epsilon that each private site last said to have spent."""
        return {site: said["epsilon"] for kept in self.history for site, said in kept.privacy.items()}

    def _fallen(self, entry: Round) -> list[str]:
        """Return the sites that say to have spent less than in a round before, as after a ledger was put back.

        By less than a thousandth it may fall, as what is numerically composed does.
        """
        spent = {
            site: max(kept.privacy[site]["epsilon"] for kept in self.history if site in kept.privacy)
            for site in entry.privacy
        }
        return sorted(site for site, said in entry.privacy.items() if said["epsilon"] < 0.999 * spent[site])

    def note_validation(self, number: int, answers: Sequence[Answer]) -> None:
        """Add the scores that sites gave the model of round ``number``."""
        scores = {
            answer.site: _named("validation/", answer.metrics) for answer in answers if isinstance(answer, SiteUpdate)
        }
        self._write_history(
            tuple(
                entry.model_copy(update={"validation": scores}) if entry.round == number else entry
                for entry in self.history
            )
        )

    def score_of(self, number: int) -> float | None:
        """Return the validation score of round ``number``, or nothing if it was not scored."""
        scores = [validation_score(entry.validation, self.figures) for entry in self.history if entry.round == number]
        return scores[0] if scores else None

    def best_round(self) -> int | None:
        """Return the number of the best kept round on validation so far, or nothing without scores."""
        best_first = [number for scored in self._comparable() for _, number in sorted(scored, reverse=True)]
        kept = self._numbers()  # a round that was not the best when it was scored has been forgotten
        return next((number for number in best_first if number in kept), None)

    def stalled(self, patience: int) -> bool:
        """Return whether there have been ``patience`` scored rounds in a row without a better score than before them.

        It stays so whatever the rounds after them score: a run that stopped for it does not go on when it is resumed.
        """
        best, waited = -1.0, 0
        for score, _ in next(iter(self._comparable()), []):
            waited = 0 if score > best else waited + 1
            best = max(best, score)
            if waited == patience:
                return True
        return False

    def _comparable(self) -> list[list[tuple[float, int]]]:
        """Return scores with their rounds, in lists of those that can be compared, what to go by first.

        Rounds are compared by one figure and only if the same sites scored them: those that most rounds share.
        """
        by_judges: dict[tuple[str, frozenset[str]], list[tuple[float, int]]] = {}
        for entry in self.history:
            for figure in self.figures:
                judges = frozenset(site for site, scores in entry.validation.items() if figure in scores)
                if judges:
                    mean = sum(entry.validation[site][figure] for site in judges) / len(judges)
                    by_judges.setdefault((figure, judges), []).append((mean, entry.round))
        groups = sorted(
            by_judges.items(), key=lambda group: (self.figures.index(group[0][0]), -len(group[1]), -len(group[0][1]))
        )
        return [scored for _, scored in groups]

    def release(self, model: GlobalModel, **more: object) -> None:
        """Put a kept round into ``model/``, its card completed with ``more``."""
        save_model(self.path / "model", model, {**self.card, **more})
        self.audit.record("model chosen", round=model.round)

    def own_of(self, site: str, number: int) -> Weights:
        """Return the tensors that a simulated site has of its own after ``number`` rounds.

        Raises:
            SiteMemoryError: they are damaged.
        """
        return own_of(FolderMemory(self.memory_of(site)), number)

    def release_to(self, site: str, model: GlobalModel, **more: object) -> None:
        """Put the model as it is at one site, with what that site has of its own, into ``sites/<site>/model/``."""
        whole = replace(model, weights={**model.weights, **self.own_of(site, model.round)})
        save_model(self.memory_of(site) / "model", whole, {**self.card, **more})

    def write(self, name: str, content: str) -> None:
        """Write a text file of the run atomically.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        partial = self.path / f"{name}.partial"
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / name)
        except OSError as error:
            raise RunFolderError(
                f"{name} cannot be written ({error.strerror}); free space on the disk of {self.path}, then resume"
            ) from error

    def _write_history(self, history: tuple[Round, ...]) -> None:
        self.write("history.json", json.dumps(HISTORY.dump_python(history, mode="json"), indent=1) + "\n")
        self.history = history

    def _file(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:04d}.safetensors"

    def _numbers(self) -> set[int]:
        """Return the numbers of the kept rounds; other files in their folder are nobody's business."""
        numbers = (int(file.stem) for file in (self.path / "rounds").glob("*.safetensors") if file.stem.isdecimal())
        return {number for number in numbers if self._file(number).exists()}

    def _last_number(self) -> int:
        return max(self._numbers(), default=0)

    def _forget(self, kept: set[int]) -> None:
        for number in self._numbers() - kept:
            self._file(number).unlink()


def _named(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
