"""The name by which instances that were made before the launcher moved know it, in their dagster.yaml."""

from mnist_pipeline.defs.run_launcher import MonitoredRunLauncher

__all__ = ["MonitoredRunLauncher"]
