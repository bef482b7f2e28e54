"""Quick stand-ins of networks: precision, folded batch-norm, compilation, and the choice among them."""
