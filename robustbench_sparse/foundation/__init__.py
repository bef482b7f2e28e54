"""What every room stands on and nothing of it knows of networks being judged: errors, files, streams, intervals."""
