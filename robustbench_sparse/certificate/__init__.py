"""The certificate: can a row's robustness be believed? ``checks.CHECKS`` is the table of contents."""
