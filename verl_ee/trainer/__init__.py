"""Early experience inside a verl job: the trainer, its stages and its checks. No other room imports verl or vllm."""
