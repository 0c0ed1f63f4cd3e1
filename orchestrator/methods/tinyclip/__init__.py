"""TinyCLIP: distillation by affinity mimicking, from inherited weights (Wu et al., ICCV 2023)."""
