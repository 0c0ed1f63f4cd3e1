"""The three training stage kinds: `pretrain`, `distill`, `finetune`. One configuration, one loop; they differ in what
they need.
"""
