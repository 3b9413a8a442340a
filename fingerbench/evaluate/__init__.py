"""Judging fingerprints: from the scores of suspects to metrics, tables, figures and reports."""
