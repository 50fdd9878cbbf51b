"""Tests of neurons."""
