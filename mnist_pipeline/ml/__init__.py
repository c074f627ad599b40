"""Machine learning without an orchestrator: nothing in this package imports Dagster."""
