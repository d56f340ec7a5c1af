"""Weakly supervised disease maps, learned by hospitals together: the core, which knows no server and no client."""
