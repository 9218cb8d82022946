"""Benchmarks: `make bench`, or `make bench-peers` to include other libraries; `bench.harness` says how they measure."""
