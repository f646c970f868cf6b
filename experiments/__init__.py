"""Experiments: one script per table or figure; run them from the root of the checkout."""
