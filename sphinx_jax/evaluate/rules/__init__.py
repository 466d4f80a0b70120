"""How answers to public benchmarks are scored, protocol by protocol."""
