"""The part that Dagster sees: assets, resources, checks, jobs, sensors, conditions and alerts."""
