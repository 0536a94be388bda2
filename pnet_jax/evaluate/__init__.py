"""Evaluation of encoders and parcellations."""
