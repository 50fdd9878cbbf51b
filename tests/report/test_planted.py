"""Planted truths: what is known, and whether it was found."""

from dataclasses import replace
from pathlib import Path

from impact_lightning.report.planted import section
from tests.report.outcomes import outcome


def test_each_truth_is_shown_with_its_number_null_and_whether_it_was_found() -> None:
    html = str(section(outcome(), Path()).html)
    for text in ("the hue of &lt;b&gt;objects&lt;/b&gt;", "0.97", "0.95\u00a0to\u00a00.99", "✓\u00a0yes", "✗\u00a0no"):
        assert text in html
    assert "Neurons: 1 of 1 found" in html
    assert "Circuits: 0 of 1 found" in html
    assert "SAE features: nothing is known for this level" in html


def test_data_of_which_nothing_is_known_are_said_to_be() -> None:
    assert "Nothing is known of these images" in section(replace(outcome(), planted=[]), Path()).html
