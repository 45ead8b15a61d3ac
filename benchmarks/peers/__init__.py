"""The engines that bench_peers.py asks: each module is a child process, one engine."""
