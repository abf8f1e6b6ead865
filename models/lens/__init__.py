"""System C: the neural lens, from light to electron pictures of grains, by type (Grant-Jacob et al. 2019)."""
