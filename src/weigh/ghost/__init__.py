"""PyTorch without data: storages, tensors, autograd, ops and modules that have shapes and lifetimes and no values."""

from weigh.ghost import tensor as tensor  # first: it brings the ops and the tape, which need each other
