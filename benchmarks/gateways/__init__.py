"""The parts of benchmarks/gateway.py: an engine, a load, our gateway and its peers, each a process of its own."""
