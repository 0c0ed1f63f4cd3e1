"""TL;DR's codebook captioner: images as lists of codes, from which captions are written (ICCV 2023)."""
