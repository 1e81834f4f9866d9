"""The paper's other systems: MAE ViT, MU-Net, weakly supervised DenseNet and ViT, ImageNet ViTs, pixel statistics.

Those with a model are model families: the package's entry points name them (group `camae.model_families`).
"""
