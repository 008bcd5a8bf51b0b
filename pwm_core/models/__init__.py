"""The mathematics and the networks: scans, distributions, returns, world model, actor-critic."""
