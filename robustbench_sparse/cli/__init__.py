"""The commands, thin: arguments in, a call of what does the work, text out."""
