"""The harness measured against itself and its peers: python -m benchmarks."""
