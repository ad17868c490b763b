"""From the start to the weights that are kept."""
