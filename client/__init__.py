"""The site's shell around the core."""
