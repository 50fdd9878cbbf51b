"""Tests of impact_lightning.metrics."""
