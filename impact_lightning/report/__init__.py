"""The report: one HTML file from the folder of `impact`, nothing recomputed."""
