"""Experiments: settings are tried in sweeps and ranked on validation, and one is sent to the gate. No Dagster here."""
