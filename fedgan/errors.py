"""Every way a run can be refused, grouped by who must act.

FedganError
├── SettingsError        the person at the keyboard: a setting is missing, unknown or out of bounds
├── CohortError          the site's data engineer: the manifest or its images cannot be used as they are
├── BaseMissing          the coordinator, which then sends all of the model: a site lacks the one that a step is from
├── SiteMemoryError      the site: what it keeps from round to round cannot be written or read
├── LedgerError          the site's data protection officer: its privacy ledger is missing, changed or older than it was
├── BudgetExhausted      the coordinator, which goes on without it: a site's patients have no privacy left to spend
├── RunFolderError       the person who runs it: the run's folder cannot be written, read or resumed
├── ModelError           the person who maps: the model's file is missing, damaged or of another kind
├── EngineFailed         the person who runs it: Flower did not start, or the run in it did not finish
├── Diverged             the coordinator: training has no way down; change the recipe
├── QuorumNotMet         the coordinator: too few sites trained in a round
└── UpdateRejected       the coordinator, with the site: an update cannot be combined with the others
    ├── StaleUpdate      it is for another round or model
    ├── ForeignUpdate    its tensors are not the model's
    ├── NoImages         no scan stands behind it
    ├── NotFinite        it holds values that are not finite numbers
    ├── TooLarge         it moves a network much farther than the others do
    ├── Apart            for rounds, it has led where no others go
    └── UnagreedMetric   a metric is no bounded figure of an agreed name

Each message says who, what, and what to do. Messages that may leave a site carry no path, patient, or count.
"""

from collections.abc import Sequence


class FedganError(Exception):
    """Anything this project refuses on purpose; the two command lines print it and exit."""


class SettingsError(FedganError):
    """A setting is missing, unknown, out of bounds, or contradicts another."""


class CohortError(FedganError):
    """A site's manifest or images cannot be used; every problem found is in ``problems``."""

    def __init__(self, site: str, problems: Sequence[str]) -> None:
        """Name the site and every problem found, one line each."""
        self.site = site
        self.problems = tuple(problems)
        shown = "\n".join(f"  {problem}" for problem in self.problems[:20])
        more = f"\n  and {len(self.problems) - 20} more" if len(self.problems) > 20 else ""
        super().__init__(
            f"site {site}: {len(self.problems)} problem(s) in the manifest; "
            f"the site's data engineer must mend them:\n{shown}{more}"
        )


class BaseMissing(FedganError):
    """A site was sent a step of the model, and does not have the model that it starts from."""


class SiteMemoryError(FedganError):
    """What a site keeps from round to round cannot be written or read; no update leaves the site."""


class LedgerError(FedganError):
    """A site's account of spent privacy cannot be trusted, read or written; the site does not train."""


class BudgetExhausted(FedganError):
    """A round would take a site over the epsilon that it may ever spend; it is not trained, and nothing is charged."""


class RunFolderError(FedganError):
    """The run's folder cannot be written, read or resumed; the last kept round stays as it was."""


class ModelError(FedganError):
    """A model's folder is missing, damaged, or not of this project."""


class EngineFailed(FedganError):
    """Flower's engine did not start, or the run in it did not finish; the message ends with its last lines."""


class Diverged(FedganError):
    """A loss is no longer a finite number, so there is no way down."""


class QuorumNotMet(FedganError):
    """Fewer sites than the quorum trained in a round."""


class UpdateRejected(FedganError):
    """A site's update cannot be combined with the others."""


class StaleUpdate(UpdateRejected):
    """An update is for another round, or for a model that was not sent."""


class ForeignUpdate(UpdateRejected):
    """An update's tensors differ from the model's in name, shape or type."""


class NoImages(UpdateRejected):
    """An update claims no training scan, or fewer than none."""


class NotFinite(UpdateRejected):
    """An update holds values that are not finite numbers."""


class TooLarge(UpdateRejected):
    """An update moves a network much farther than those of the same round do."""


class Apart(UpdateRejected):
    """Over the rounds, a site's updates lead where no two others' do."""


class UnagreedMetric(UpdateRejected):
    """A metric is no bounded figure of an agreed name."""
