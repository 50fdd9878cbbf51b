"""Tests of live and cached activations."""
