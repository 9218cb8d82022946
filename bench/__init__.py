"""Benchmarks; `bench.harness` says how they measure.

`make bench` runs those of operations, `make bench-peers` with other libraries too, `make networks` those of whole
networks, `make gpu` all that matters on a GPU.
"""
