"""Every way a run can be refused, grouped by who must act.

FedganError
├── SettingsError        the person at the keyboard: a setting is missing, unknown or out of bounds
├── CohortError          the site's data engineer: the manifest or its images cannot be used as they are
├── BaseMissing          the coordinator, which then sends all of the model: a site lacks the one that a step is from
├── SiteMemoryError      the site: what it keeps from round to round cannot be written or read
├── LedgerError          who keeps it, mostly a site's data protection officer: a privacy ledger is missing or changed
├── BudgetExhausted      the coordinator, which goes on without it: a site's patients have no privacy left to spend;
│                        or which ends: the sites themselves have none
├── PromiseBroken        the maintainers: an attacker learns more of patients than a private run promises
├── RunFolderError       the person who runs it: the run's folder cannot be written, read or resumed
├── ModelError           the person who maps: the model's file is missing, damaged or of another kind
│   └── ReleaseRefused   the coordinator, told by the site: a release is not to be trusted; the model before it stays
│       ├── TamperedRelease  its card or weights are not what was signed
│       ├── ForeignKey       another key signed it
│       ├── ForeignRelease   it is of another federation
│       └── OlderRelease     it does not come after the one that is installed
├── ReleaseUnavailable   the site, which tries again: a release has not arrived whole; what has is kept
├── SiteRefused          the site, with the coordinator: the federation does not let it in, or no longer
├── PolicyRefused        the coordinator, or the hospital: the site's own policy does not allow what is asked
│   ├── BundleRefused    code that the site has not approved
│   ├── TaskTooLong      more local steps or more seconds than a task may take
│   ├── ModelRefused     a kind or size of model that is not trained there
│   ├── DiseaseRefused   a disease that the site's labels do not speak of
│   └── PrivacyRefused   less privacy than the site demands
├── TaskAbandoned        nobody: who asked no longer waits for the answer
├── HomeError            the person who runs it: the folder of a federation or a site is missing, in use or not writable
├── InvitationRefused    the site's engineer: an invitation is damaged, expired, used, or of another federation
├── RequestRefused       the coordinator, with the site: a site is unknown, or its request cannot be signed
├── Unreachable          the site's network engineer: the coordinator cannot be reached, or is another than expected
├── EngineFailed         the person who runs it: Flower did not start, or the run in it did not finish
├── Diverged             the coordinator: training has no way down; change the recipe
├── QuorumNotMet         the coordinator: too few sites trained in a round
└── UpdateRejected       the coordinator, with the site: an update cannot be combined with the others
    ├── StaleUpdate      it is for another round or model
    ├── ForeignUpdate    its tensors are not the model's
    ├── NoImages         no scan stands behind it
    ├── NotFinite        it holds values that are not finite numbers
    ├── TooLarge         it moves a network much farther than the others do
    ├── EpsilonFell      its site says to have spent less privacy than before
    ├── Apart            for rounds, it has led where no others go
    ├── Distant          it is as it should be, and the rule of the run trusts others more
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
    """An account of spent privacy cannot be trusted, read or written; who keeps it does not train."""


class BudgetExhausted(FedganError):
    """A round would take an account over the epsilon that may ever be spent; it is not trained, nothing is charged."""


class PromiseBroken(FedganError):
    """An attack tells more of patients than a private run has promised; its model must not be given away."""


class RunFolderError(FedganError):
    """The run's folder cannot be written, read or resumed; the last kept round stays as it was."""


class ModelError(FedganError):
    """A model's folder is missing, damaged, or not of this project."""


class ReleaseRefused(ModelError):
    """A release is not to be trusted, and the model before it stays."""


class TamperedRelease(ReleaseRefused):
    """A release's card or weights are not what was signed."""


class ForeignKey(ReleaseRefused):
    """A release is signed with another key than the federation's."""


class ForeignRelease(ReleaseRefused):
    """A release is of another federation."""


class OlderRelease(ReleaseRefused):
    """A release does not come after the one that is installed."""


class ReleaseUnavailable(FedganError):
    """A release has not arrived whole; what has arrived is kept for the next attempt."""


class SiteRefused(FedganError):
    """The federation does not let a site in, or no longer."""


class PolicyRefused(FedganError):
    """A site's own policy does not allow what the coordinator asks of it."""


class BundleRefused(PolicyRefused):
    """The coordinator ships code that the site has not approved."""


class TaskTooLong(PolicyRefused):
    """A task would take, or has taken, longer than the site allows."""


class ModelRefused(PolicyRefused):
    """A task is for a kind or size of model that the site does not train."""


class DiseaseRefused(PolicyRefused):
    """A task is about a disease that the site does not let its scans be used for."""


class PrivacyRefused(PolicyRefused):
    """A task gives the site's patients less privacy than the site demands."""


class TaskAbandoned(FedganError):
    """Who asked for a task no longer waits for its answer, so that the training ends."""


class HomeError(FedganError):
    """The folder of a federation or of a site is missing, in use already, damaged, or cannot be written."""


class InvitationRefused(FedganError):
    """An invitation is damaged, expired, used already, or not of this federation."""


class RequestRefused(FedganError):
    """A site is not known, or what it asks cannot be signed."""


class Unreachable(FedganError):
    """The coordinator cannot be reached, or who answers is not the coordinator."""


class EngineFailed(FedganError):
    """Flower's engine did not start, or the run in it did not finish; the message ends with its last lines."""


class Diverged(FedganError):
    """A loss or a weight is no longer a finite number, so there is no way down."""


class QuorumNotMet(FedganError):
    """Fewer sites than the quorum trained in a round."""


class UpdateRejected(FedganError):
    """A site's update cannot be combined with the others."""


class StaleUpdate(UpdateRejected):
    """An update is for another round, or for a model that was not sent."""


class ForeignUpdate(UpdateRejected):
    """An update's tensors differ from the model's in name, shape or type."""


class NoImages(UpdateRejected):
    """An update claims no training scan, fewer than none, or those of other diseases than were asked about."""


class NotFinite(UpdateRejected):
    """An update holds values that are not finite numbers."""


class TooLarge(UpdateRejected):
    """An update moves a network much farther than those of the same round do."""


class Apart(UpdateRejected):
    """Over the rounds, a site's updates lead where no two others' do."""


class Distant(UpdateRejected):
    """An update lies farther from the others than those that the run's rule trusts."""


class EpsilonFell(UpdateRejected):
    """A site says to have spent less of its patients' privacy than it has said before: its ledger was put back."""


class UnagreedMetric(UpdateRejected):
    """A metric is no bounded figure of an agreed name."""
