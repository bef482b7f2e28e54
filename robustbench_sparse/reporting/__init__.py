"""Tables, figures and texts: pure functions of what the runs have left on the disk."""
