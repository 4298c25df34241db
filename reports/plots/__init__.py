"""Plots, each from plain numbers to a matplotlib figure."""
