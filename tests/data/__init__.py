"""Tests of `impact_lightning.data`."""
