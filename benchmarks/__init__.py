import training.threads  # noqa: F401, before torch loads: both sides get training's thread settings
