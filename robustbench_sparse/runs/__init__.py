"""What lies on the disk: the one room that spells file names."""
