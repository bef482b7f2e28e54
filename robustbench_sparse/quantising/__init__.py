"""From a network to its file in int8, and what that one is worth."""
