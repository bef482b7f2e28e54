"""The checks of the certificate, by what they look at; each file's CHECKS stand in certify's table."""
