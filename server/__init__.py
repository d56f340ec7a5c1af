"""The coordinator's shell around the core."""
