"""Everything that touches verl or vllm: trainer, worker, agent loop, hand-over and the CPU platform."""
