"""The settings a command receives: types, bounds and cross-field rules. Values live in ``configs/``."""

from fedgan.settings.data import Intensity, ManifestData, PhantomData, Size
from fedgan.settings.federation import (
    Compression,
    FedAvg,
    GanFedAvg,
    NoServerOptimizer,
    ServerAdam,
    ServerMomentum,
)
from fedgan.settings.model import SAGAN, LossWeights, TagGAN
from fedgan.settings.privacy import NoPrivacy, PatientPrivacy
from fedgan.settings.simulation import Aggregation, Data, Model, ServerOptimizer, Simulation
from fedgan.settings.types import Name, SiteName

__all__ = [
    "SAGAN",
    "Aggregation",
    "Compression",
    "Data",
    "FedAvg",
    "GanFedAvg",
    "Intensity",
    "LossWeights",
    "ManifestData",
    "Model",
    "Name",
    "NoPrivacy",
    "NoServerOptimizer",
    "PatientPrivacy",
    "PhantomData",
    "ServerAdam",
    "ServerMomentum",
    "ServerOptimizer",
    "Simulation",
    "SiteName",
    "Size",
    "TagGAN",
]
