"""The same job on Driftline and beside it on its peers: `make bench-peers`, or `python -m benchmarks.peers`."""
