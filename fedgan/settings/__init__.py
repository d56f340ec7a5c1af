"""The settings a command receives: types, bounds and cross-field rules. Values live in ``configs/``."""

from fedgan.settings.data import AgreedScans, Intensity, ManifestData, PhantomData, Scans, Size
from fedgan.settings.deployment import Deployment, terms_of
from fedgan.settings.federation import (
    Compression,
    FedAvg,
    GanFedAvg,
    NoServerOptimizer,
    ServerAdam,
    ServerMomentum,
)
from fedgan.settings.model import SAGAN, LossWeights, TagGAN
from fedgan.settings.privacy import NoPrivacy, PatientPrivacy, SitePrivacy
from fedgan.settings.run import Aggregation, Model, Privacy, Run, ServerOptimizer, Terms, Training
from fedgan.settings.simulation import Data, Simulation
from fedgan.settings.types import Name, SiteName

__all__ = [
    "SAGAN",
    "Aggregation",
    "AgreedScans",
    "Compression",
    "Data",
    "Deployment",
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
    "Privacy",
    "Run",
    "Scans",
    "ServerAdam",
    "ServerMomentum",
    "ServerOptimizer",
    "Simulation",
    "SiteName",
    "SitePrivacy",
    "Size",
    "TagGAN",
    "Terms",
    "Training",
    "terms_of",
]
