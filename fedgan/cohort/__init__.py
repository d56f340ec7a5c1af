"""What one site has: its manifest, its scans, its batches; and synthetic patients."""
