"""From a checkpoint to a bundle the appliance can run, and the contract between the two."""
