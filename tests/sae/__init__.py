"""Tests of `impact_lightning.sae`."""
