"""System A: enhancement of microsphere images in real time (Wang, Bangor)."""
