"""The linear-Gaussian model that a fit begins at."""
