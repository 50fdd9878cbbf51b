"""Activations of frozen backbones: computed in the training loop, or extracted to shards and read from disk."""

from .batch import ActivationBatch as ActivationBatch
from .batch import SiteStatistics as SiteStatistics
from .cached import CachedActivations as CachedActivations
from .extract import extract as extract
from .live import LiveActivations as LiveActivations
from .module import ActivationDataModule as ActivationDataModule
from .tokens import Tokens as Tokens
