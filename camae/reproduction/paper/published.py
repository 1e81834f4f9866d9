"""Published numbers of the paper, shown beside ours and never mixed with them (other data, other sizes)."""

from __future__ import annotations

SOURCES = ("CORUM", "hu.MAP", "Reactome", "StringDB")

# Table 2: RPI-93M MAE ViT-L/8+, recall in the top and bottom 5 % on RxRx3.
TABLE_2 = {
    "No transformation": (0.124, 0.124, 0.096, 0.135),
    "PCA": (0.126, 0.122, 0.102, 0.134),
    "Center by plate": (0.449, 0.361, 0.184, 0.350),
    "Center by experiment": (0.455, 0.365, 0.186, 0.353),
    "Standardize by plate": (0.456, 0.367, 0.187, 0.359),
    "Standardize by experiment": (0.460, 0.370, 0.188, 0.359),
    "PCA+Standardize by plate": (0.614, 0.435, 0.261, 0.477),
    "PCA+Standardize by experiment": (0.614, 0.435, 0.258, 0.477),
    "TVN": (0.622, 0.443, 0.267, 0.484),
}

# Table 3: group -> (model backbone, pretraining dataset, recall by source).
TABLE_3: dict[str, list[tuple[str, str, tuple[float, float, float, float]]]] = {
    "Simple baselines": [
        ("Random 1024-dim embeddings", "N/A", (0.100, 0.100, 0.100, 0.100)),
        ("Pixel intensity statistics", "N/A", (0.280, 0.260, 0.160, 0.270)),
    ],
    "ImageNet-pretrained classifiers": [
        ("ViT-S/16", "Imagenet-21k", (0.494, 0.348, 0.213, 0.388)),
        ("ViT-B/16", "Imagenet-21k", (0.511, 0.344, 0.216, 0.395)),
        ("ViT-B/8", "Imagenet-21k", (0.472, 0.324, 0.203, 0.369)),
        ("ViT-L/16", "Imagenet-21k", (0.531, 0.360, 0.228, 0.409)),
    ],
    "Weakly supervised models": [
        ("DenseNet-161", "RxRx1", (0.383, 0.307, 0.190, 0.330)),
        ("DenseNet-161 w/ AdaBN", "RxRx1", (0.485, 0.349, 0.228, 0.417)),
        ("DenseNet-161 w/ AdaBN", "RxRx3", (0.461, 0.303, 0.188, 0.377)),
        ("DenseNet-161 w/ AdaBN (1024-dim)", "RxRx1", (0.502, 0.363, 0.220, 0.422)),
        ("DenseNet-161 w/ AdaBN (1024-dim)", "RxRx3", (0.520, 0.350, 0.207, 0.413)),
        ("ViT-B/16", "RxRx1", (0.505, 0.348, 0.218, 0.408)),
        ("ViT-L/16", "RxRx3", (0.532, 0.353, 0.196, 0.402)),
        ("ViT-L/16", "RxRx1-2M", (0.568, 0.397, 0.255, 0.472)),
    ],
    "MU-Nets": [
        ("MU-Net-L", "RxRx3", (0.566, 0.374, 0.232, 0.427)),
        ("MU-Net-L", "RPI-52M", (0.576, 0.385, 0.238, 0.443)),
        ("MU-Net-L", "RPI-93M", (0.581, 0.386, 0.247, 0.440)),
    ],
    "Intermediate MAE ViT checkpoints": [
        ("MAE ViT-L/8+ (epoch 1)", "RPI-52M", (0.524, 0.357, 0.216, 0.405)),
        ("MAE ViT-L/8+ (epoch 25)", "RPI-52M", (0.595, 0.411, 0.254, 0.461)),
        ("MAE ViT-L/8+ (epoch 46)", "RPI-52M", (0.605, 0.424, 0.267, 0.474)),
    ],
    "MAE ViTs": [
        ("MAE ViT-B/16", "RxRx3", (0.565, 0.387, 0.232, 0.435)),
        ("MAE ViT-B/16", "RPI-52M", (0.540, 0.373, 0.234, 0.416)),
        ("MAE ViT-B/8", "RPI-52M", (0.601, 0.404, 0.251, 0.459)),
        ("MAE ViT-L/16", "RxRx3", (0.560, 0.374, 0.231, 0.427)),
        ("MAE ViT-L/16", "RPI-52M", (0.607, 0.414, 0.258, 0.460)),
        ("MAE ViT-L/16+", "RPI-52M", (0.626, 0.425, 0.260, 0.468)),
        ("MAE ViT-L/8+", "RPI-93M", (0.622, 0.443, 0.267, 0.484)),
    ],
    "Channel-agnostic MAE ViTs": [
        ("CA-MAE ViT-B/16", "RPI-52M", (0.587, 0.404, 0.257, 0.459)),
        ("CA-MAE ViT-B/16+", "RPI-52M", (0.586, 0.398, 0.249, 0.455)),
        ("CA-MAE ViT-L/16+", "RPI-93M", (0.614, 0.424, 0.264, 0.478)),
    ],
}

# Table 4: fraction retrieved on CPJUMP1, (perturbations, siblings), each mean and standard deviation.
TABLE_4 = {
    "CellProfiler": ((0.53, 0.30), (0.13, 0.07)),
    "ViT-L/16, ImageNet-21k": ((0.88, 0.09), (0.06, 0.03)),
    "WSL ViT-L/16, RxRx1-2M": ((0.84, 0.08), (0.02, 0.02)),
    "MAE ViT-L/8+, RPI-93M": ((0.78, 0.13), (0.03, 0.03)),
    "CA-MAE ViT-L/16+, RPI-93M": ((0.95, 0.05), (0.02, 0.02)),
}

# Table 5: recall at 5 % false positives of StringDB relationships in three gene sets.
GENE_SETS = ("PoC-124", "MoA-300", "DG-1640")
TABLE_5 = {
    ("WSL DN161 w/ AdaBN", "RxRx1"): (0.79, 0.24, 0.15),
    ("MAE ViT-S/16", "RxRx3"): (0.74, 0.19, 0.14),
    ("MU-net-L", "RPI-52M"): (0.79, 0.20, 0.15),
    ("MAE ViT-L/8+", "RPI-93M"): (0.80, 0.23, 0.17),
    ("DiNO ViT-S/8", "CP 1640"): (0.53, 0.12, 0.14),
}

# Figure 6, median R^2 where the text gives it: (WSL DenseNet-161 w/ AdaBN, MAE ViT-L/8+).
FIGURE_6 = {"AreaShape": (0.401, 0.456), "Intensity": (0.297, 0.737)}
