"""Trains machine-learning models straight from ROOT files, and predicts with them."""

__version__ = "0.1.0"
