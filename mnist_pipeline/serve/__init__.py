"""The inference service: the deployed model over HTTP, a page to draw on, and corrections for the next training."""
