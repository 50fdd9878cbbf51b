"""Metrics: torchmetrics that take tensors and know nothing of models."""

from impact_lightning.metrics.accuracy import TopKAccuracy as TopKAccuracy
from impact_lightning.metrics.intervals import wilson as wilson
from impact_lightning.metrics.mean import ExactMean as ExactMean
from impact_lightning.metrics.scores import ClassifierScores as ClassifierScores
