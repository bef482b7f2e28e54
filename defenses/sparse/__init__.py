"""Methods that make networks sparse: splittings, Bregman and proximal optimisers, pruning, and their controllers."""
