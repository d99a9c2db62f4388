"""Rewriting checkpoints: plan, stream, resume; any architecture, in memory that does not grow with the model.

`plan` decides tensor by tensor what is stored, to the byte, from headers alone; `running` does it. A target (`targets`)
is what is written: its `quantization_config`, its layout, its arithmetic. Nothing here knows a model's family.
"""
