"""A real Slurm of two nodes on one computer."""
