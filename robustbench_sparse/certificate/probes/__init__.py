"""What checks make of a network to see through it: gradients rewired, surrogates, parts, a second process."""
