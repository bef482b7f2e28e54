"""Numbers and adversarials on their way out, to other benchmarks, and in, from others: export and challenge."""
