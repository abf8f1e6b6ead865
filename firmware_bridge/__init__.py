"""The instrument wires: PZT controller, trigger line, and a simulator of both. Imports nothing of ours."""
