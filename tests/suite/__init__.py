"""Tests of `impact_lightning.suite`."""
