"""How fast this package is beside the libraries in use, and whether its verdicts are the same: ``make bench``."""
