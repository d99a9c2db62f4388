"""Witnesses: real PyTorch, run beside the prediction. Needs the extra `weigh[torch]`.

`witness.trace` runs a model on fake tensors, `witness.measure` for real; both do it in a process of its own and return
a `WitnessReport` (a trace with module paths and purposes, the prediction beside it). What runs inside that process:

    worker        reads a job, runs it, answers
    workload      the model, its batch and its loss
    training, generation        the loops, as a user of PyTorch writes them
    parallel      FSDP2, DDP and tensor parallelism, over a fake process group or a real one
    recorder      every storage's birth and death, with module and purpose
    profiled, counters          what the CPU's and the GPU's own allocators say
    faithful, fake_cuda, attention      what fake CUDA tensors need to behave like real ones

Only the command line and `weigh.hooks` import this package. The modules of the first paragraph load no PyTorch.
"""
