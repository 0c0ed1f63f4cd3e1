"""CLIP: contrastive pre-training of two towers (Radford et al. 2021)."""
