"""The schema of ``metrics.json``: every figure of a run's report, with its unit and range.

Scores are fractions in [0, 1] unless said otherwise. A figure that cannot be had (no mask, one class only) is null,
never zero.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Estimate(_Frozen):
    """A score with its 95 % percentile bootstrap interval over patients."""

    value: Share
    low: Share | None = None
    """Null when no resampling was asked for, or there are fewer than 3 patients."""
    high: Share | None = None


class Scores(_Frozen):
    """How well maps find disease, on one set of scans.

    Pixel figures pool all pixels of all scans whose truth is known, normal scans (empty mask) included.
    """

    num_images: int
    num_patients: int
    num_masked: int
    """Abnormal scans with a mask."""
    pixel_ap: Estimate | None
    """Average precision of the pixels."""
    best_dice: Estimate | None
    """Largest pooled Dice over all thresholds: an oracle, it looks at the masks it is scored on."""
    dice: Estimate | None
    """Pooled Dice at the threshold chosen on the validation split; null without one."""
    iou: Estimate | None
    """Pooled intersection over union at that threshold."""
    poi: Estimate | None
    """Percentage of intersection, as a fraction: pixel recall there (Nawaz et al. 2025, arXiv:2502.17836)."""
    pixel_precision: Estimate | None
    """Pixel precision at that threshold; PoI means nothing without it."""
    aupro: Estimate | None
    """Area under the per-region overlap up to a false positive rate of 0.3, scaled to [0, 1] (Bergmann et al. 2020)."""
    pointing_game: Estimate | None
    """Share of abnormal scans whose highest pixel lies in a mask or box (Zhang et al. 2016, arXiv:1608.00507)."""
    iobb: Estimate | None
    """Share of boxed scans whose map's box covers T(IoBB) >= 0.25 (Wang et al. 2017, arXiv:1705.02315)."""
    box_ap: Estimate | None
    """Average precision of boxed and normal scans' pixels, as if boxes were masks; healthy tissue in them lowers it."""
    image_auroc: Estimate | None
    """Area under the ROC curve of the scan's score, normal against abnormal."""
    image_ap: Estimate | None
    """Average precision of the scan's score."""


class Arm(_Frozen):
    """One way to train (or a control), scored on the test split."""

    name: str
    """As ``federated``, ``local A``, ``pooled, steps of one site``, ``brightness 2 px``."""
    kind: Literal["federated", "local", "pooled", "control"]
    steps: int | None
    """Local steps along this model's path; null for a control."""
    threshold: Share | None
    """Least evidence of a pixel that is found, from the arm's validation scans, all its sites' pooled; null if none."""
    threshold_by: str
    """How it was chosen, or why there is none, in words."""
    overall: Scores
    """All sites' test scans pooled."""
    per_site: dict[str, Scores]


class Comparison(_Frozen):
    """A paired bootstrap over the test patients: the federated arm minus another."""

    metric: Literal["pixel_ap"]
    against: str
    """Name of an arm, or ``mean of the local arms``."""
    difference: float
    """In [-1, 1]; positive means the federated arm is better."""
    low: float
    high: float
    share_better: Share
    """Share of resamplings in which the federated arm is better."""


class SiteLevel(_Frozen):
    """What is promised to each site as a whole, of who sees the models but not the coordinator; to no patient."""

    epsilon: Annotated[float, Field(ge=0)]
    """Of all the federation's runs that promise it, together: the site-level epsilon."""
    delta: Share


class SitePrivacy(SiteLevel):
    """What the promise took in this run."""

    noise: Annotated[float, Field(gt=0)]
    """Standard deviation, in multiples of the most by which one site can move a player's mean step."""
    noise_to_signal: Annotated[float, Field(gt=0)]
    """Length of all of the run's noise beside the longest signal that there can be, of the larger player."""
    sites: int
    """Expected; what steps were divided by."""


class Round(_Frozen):
    """What was kept of one round."""

    round: int
    seconds: float
    """Wall time from the task to the kept model."""
    trained: tuple[str, ...]
    """Sites whose update counted."""
    failed: dict[str, str]
    """Site to reason."""
    losses: dict[str, dict[str, float]]
    """Site to mean loss by name, over the round's local steps."""
    validation: dict[str, dict[str, float]]
    """Site to score by name, of the model this round *produced*; empty until it was scored.

    ``pixel_ap`` and ``image_auroc`` as in ``Scores``; ``aucp`` is the pseudo-AUC of ``fedgan.results.reading.aucp``.
    """
    shares: dict[str, dict[str, Share]] = {}
    """Site to network to the site's share of that network's step."""
    planned_shares: dict[str, dict[str, Share]] = {}
    """The same if every site that was ever heard of had taken part."""
    traffic: dict[str, dict[str, float]] = {}
    """Site to bytes ``to_site`` and ``from_site`` that Flower's link carried; empty where there is no link."""

    privacy: dict[str, dict[str, float]] = {}
    """Site to the ``epsilon`` that it has spent by then, over all its runs, and its own ``delta``, at which it is told.

    A site is missing that has trained on its patients without a promise; all are in a run that promises nothing.
    """
    site_level: SiteLevel | None = None
    """What the federation has spent by then; null in a run that promises nothing to sites."""


class SiteContribution(_Frozen):
    """What one site had to do with a model, over the rounds that made it."""

    trained: int
    """Rounds in which its update counted."""
    failed: dict[str, int]
    """Reason to number of rounds in which it had none that could count."""
    shares: dict[str, Share]
    """Network to mean over the rounds of the site's share of the network's step, 0 where it had none."""
    planned_shares: dict[str, Share]
    """The same if every site that was ever heard of had taken part in every round."""
    traffic: dict[str, float] = {}
    """Bytes ``to_site`` and ``from_site`` that Flower's link carried, mean of the rounds that it took part in."""


class Membership(_Frozen):
    """How well an attacker tells patients who were trained on from those whom a secret coin left out."""

    patients: int
    """Training patients whose coins were tossed, before the training."""
    kept: int
    """Of them, how many were trained on."""
    guesses: int
    """About how many of them it was guessed: all, or those who look most and least like it."""
    right: int
    auroc: Estimate | None
    """Area under the ROC curve of the attacker's score; 0.5 is chance. Null where all were kept, or none."""
    epsilon_at_least: float
    """Bound from below, with 95 % confidence (Steinke et al. 2023, arXiv:2305.08846)."""
    epsilon_shown_at_most: float
    """What that bound would be had every guess been right: a promise above it cannot be refuted here."""
    epsilon_promised: float | None
    """What the site says to have spent, of all sites the most; null where nothing is promised."""


class Inversion(_Frozen):
    """How well a training scan is recovered from one critic step's gradient, as PSNR in dB."""

    scan: str
    """What to call it: its site and a number."""
    plain: float
    """From the gradient itself."""
    private: float
    """From the gradient as a private run releases it: clipped, with noise."""
    mean_scan: float
    """Of the mean of the site's other training scans, for which no gradient is needed."""

    @property
    def tells(self) -> bool:
        """Whether the gradient itself gives more than no gradient does; otherwise a private one is no comparison."""
        return self.plain > self.mean_scan


class Attacks(_Frozen):
    """What an attacker learns of the run's training patients."""

    epsilon: float
    """Of the run that private gradients are from: this one, or as ``configs/privacy/patient.yaml`` would have it."""
    delta: float
    """Of that run; at it, epsilon is bounded."""
    noise: float
    """Of its releases, in clipping norms."""
    membership: dict[str, Membership]
    """By site; ``all sites`` are guessed about as one where there are several. Empty if not tried."""
    inversions: tuple[Inversion, ...]
    """Of scans of one site. Empty if not tried."""


class Metrics(_Frozen):
    """The whole of ``metrics.json``."""

    schema_version: Literal[1] = 1
    name: str
    date: str
    """UTC, ISO 8601."""
    machine: str
    """Processor or GPU, number of threads."""
    versions: dict[str, str]
    seed: int
    seconds: float
    """Wall time of the rounds of all arms, interruptions left out."""
    sites: dict[str, dict[str, int]]
    """Site to number of ``train``, ``val`` and ``test`` scans and ``patients``; to nothing where only it may know."""
    num_parameters: dict[str, int]
    """Network to number of trainable parameters."""
    ended: str
    """After which round the training ended, and why there if it ended early, in words."""
    site_privacy: SitePrivacy | None = None
    """What the run promises to each site; null if nothing."""
    chosen_round: int
    """Round whose model is the result."""
    chosen_by: str
    """How it was chosen, in words."""
    rounds: tuple[Round, ...]
    contributions: dict[str, SiteContribution] = {}
    """Site to its part in the result: the rounds up to the chosen one."""
    arms: tuple[Arm, ...]
    controls: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    attacks: Attacks | None = None
    """Null where none were asked for."""
