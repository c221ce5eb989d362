import training.threads  # noqa: F401, before torch loads: both sides have the threads that training has
