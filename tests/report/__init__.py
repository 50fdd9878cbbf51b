"""Tests of `impact_lightning.report`."""
