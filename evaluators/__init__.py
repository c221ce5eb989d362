import training.threads  # noqa: F401, before torch loads
