"""Methods that make networks robust: what they train on, and what they add to the loss or the network."""
