"""Deciding, evaluating, calibrating, certifying and searching cascades. Pure: arrays in, values out."""
