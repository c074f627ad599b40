"""Alerts, in three parts: what happened (`alert`, `events`), where it is told (`channels`), how far (`sensor`)."""
