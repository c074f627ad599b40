"""The resources: what a deployment chooses."""
