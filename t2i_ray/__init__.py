"""Train text-to-image GANs on a Ray cluster, sweep them, and compare them honestly."""

__version__ = "0.1.0"
