"""Weakly supervised disease maps, learned by hospitals together: the core, which knows no server and no client.

A name is imported when it is first asked for: most of them bring PyTorch, for which most commands have no use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgan.cohort.cohort import Cohort
    from fedgan.errors import FedganError
    from fedgan.federated.aggregation import FedAvg, GanFedAvg
    from fedgan.federated.coordinator import Federation, Plan, run_rounds
    from fedgan.federated.site import Site
    from fedgan.mapping import Finding, Mapper
    from fedgan.records import GlobalModel, RoundTask, ScanCounts, SiteFailure, SiteUpdate

_HOMES = {
    "Cohort": "cohort.cohort",
    "FedAvg": "federated.aggregation",
    "Federation": "federated.coordinator",
    "FedganError": "errors",
    "Finding": "mapping",
    "GanFedAvg": "federated.aggregation",
    "GlobalModel": "records",
    "Mapper": "mapping",
    "Plan": "federated.coordinator",
    "RoundTask": "records",
    "ScanCounts": "records",
    "Site": "federated.site",
    "SiteFailure": "records",
    "SiteUpdate": "records",
    "run_rounds": "federated.coordinator",
}

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


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
