"""Methods that make networks sparse: splittings, Bregman and proximal optimizers, pruning, and their controllers."""
