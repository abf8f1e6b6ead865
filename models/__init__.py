"""The science: optics, specimens, networks, training and evaluation."""
