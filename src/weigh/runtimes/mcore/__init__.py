"""Megatron Core: its GPT model, gradient buffers, optimizers and pipeline schedules on ghost tensors."""
