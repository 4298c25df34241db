"""Shared training: one trainer, the methods, the objectives, configs."""
