"""Weakly supervised disease maps, learned by hospitals together: the core, which knows no server and no client."""

from fedgan.cohort.cohort import Cohort
from fedgan.errors import FedganError
from fedgan.federated.aggregation import FedAvg, GanFedAvg
from fedgan.federated.coordinator import Federation, Plan, run_rounds
from fedgan.federated.site import Site
from fedgan.mapping import Finding, Mapper
from fedgan.records import GlobalModel, RoundTask, ScanCounts, SiteFailure, SiteUpdate

__all__ = [
    "Cohort",
    "FedAvg",
    "Federation",
    "FedganError",
    "Finding",
    "GanFedAvg",
    "GlobalModel",
    "Mapper",
    "Plan",
    "RoundTask",
    "ScanCounts",
    "Site",
    "SiteFailure",
    "SiteUpdate",
    "run_rounds",
]
