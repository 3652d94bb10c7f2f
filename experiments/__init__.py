"""Measurements; nothing imports these."""
