"""What every PaMoRL domain shares: scans, networks, world model, actor-critic, training loop."""

__version__ = "0.1.0"
