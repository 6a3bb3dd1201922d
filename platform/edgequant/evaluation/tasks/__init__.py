"""The benchmarks, one `Task` in one file each, and the registry that everything else loops over."""
