"""What runs in the process of PyTorch."""
