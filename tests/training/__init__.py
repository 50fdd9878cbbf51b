"""Tests of impact_lightning.training."""
