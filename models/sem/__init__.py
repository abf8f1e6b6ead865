"""System B: optical microsphere images to images as a scanning electron microscope makes them (SSUM)."""
