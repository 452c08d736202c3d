"""Metrics of a trained model on a test set."""
