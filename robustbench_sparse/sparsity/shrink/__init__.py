"""Networks without their dead channels: found, removed for real, proven equal."""
