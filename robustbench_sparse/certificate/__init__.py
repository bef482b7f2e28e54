"""The certificate: can a row's robustness be believed? ``CHECKS`` is the table of contents."""
