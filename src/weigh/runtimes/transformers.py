"""The Trainer of transformers over accelerate and peft."""

from __future__ import annotations

from weigh.runtimes import Runtime

RUNTIME = Runtime("transformers", "5.23")
