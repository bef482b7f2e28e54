"""Pages of results: a folder of HTML that opens from disk, made of what runs left and of nothing else."""
