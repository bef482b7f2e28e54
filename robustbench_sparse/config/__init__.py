"""From a benchmark file to a checked plan: what may stand in it, and what it means."""
