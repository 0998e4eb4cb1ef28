"""The actor worker that mid-trains and then runs GRPO, on verl's FSDP and Megatron engines, and its reference."""
