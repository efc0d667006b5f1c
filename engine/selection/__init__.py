"""Selection: what a decode step reads, as methods produce it and kernels consume it."""
