"""The zero-copy loop on an NVIDIA GPU: pycuda and cuda-bindings are imported here and nowhere else."""
