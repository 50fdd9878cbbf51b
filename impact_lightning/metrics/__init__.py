"""Metrics: torchmetrics that take tensors and know nothing of models."""

from impact_lightning.metrics.accuracy import TopKAccuracy as TopKAccuracy
from impact_lightning.metrics.cosine import MeanCosine as MeanCosine
from impact_lightning.metrics.density import FiringDensity as FiringDensity
from impact_lightning.metrics.fvu import FVU as FVU
from impact_lightning.metrics.intervals import wilson as wilson
from impact_lightning.metrics.l0 import L0 as L0
from impact_lightning.metrics.mean import ExactMean as ExactMean
from impact_lightning.metrics.monosemanticity import Monosemanticity as Monosemanticity
from impact_lightning.metrics.reconstruction_bias import ReconstructionBias as ReconstructionBias
from impact_lightning.metrics.recovered import Recovered as Recovered
from impact_lightning.metrics.scores import ClassifierScores as ClassifierScores
from impact_lightning.metrics.top_samples import TopSamples as TopSamples
