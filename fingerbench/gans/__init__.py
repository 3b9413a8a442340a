"""Class-conditional GANs: one file per family, one trainer, one way to keep their weights."""
