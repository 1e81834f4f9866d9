"""A small JUMP-lite, made here: site index, both kinds of store, perturbations and annotations in its layout."""

import shutil

import numpy as np
import pandas as pd

CHANNELS = ("AGP", "DNA", "ER", "Mito", "RNA")
RELEASED = {
    "metadata": "workspace/publication_data/2026_jump_lite/metadata/v1.0",
    "images": "images/2026_jump_lite_v1.0/images_compressed",
}
DRAFT = {"metadata": "workspace/metadata/jump_lite/v1.0", "images": "images_compressed/jump_lite/v1.0"}
CODECS = {"zstd": "zstd", "mq": "jpegxl_lossy_mq"}
SOURCES = {"source_2": ("B1", "P1"), "source_7": ("B2", "CP_3")}
DMSO = "JCP2022_033924"
INDEX = "jump_lite_site_index.parquet"
# Compounds, and the CRISPR and ORF reagents of their targets. The images of a mechanism are alike.
MECHANISMS = {
    "JCP2022_000001": 0,
    "JCP2022_000002": 0,
    "JCP2022_800001": 0,
    "JCP2022_000003": 1,
    "JCP2022_000004": 1,
    "JCP2022_900001": 1,
    "JCP2022_000005": 2,
    "JCP2022_000006": 3,
}


def key_of(source, well, site):
    batch, plate = SOURCES[source]
    return f"{source}__{batch}__{plate}__{well}__{site}"


def picture(rng, mechanism, size):
    """Blobs (5, *size) uint16 whose width and brightness are the mechanism's; large values, which JPEG XL keeps."""
    y, x = np.mgrid[: size[0], : size[1]]
    planes = []
    for channel in range(5):
        plane = np.full(size, 4000.0)
        for _ in range(6):
            cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
            width = 3 + (channel == mechanism) * 4
            plane += (9000 + 3000 * (channel == mechanism)) * np.exp(
                -((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2)
            )
        planes.append(plane + rng.normal(0, 400, size))
    return np.clip(planes, 0, 65535).astype(np.uint16)


def write_array(path, image, codec):
    """One site's array in the form of its store."""
    import zarr

    if codec == "zstd":
        from zarr.codecs import BloscCodec

        options = {"zarr_format": 3, "compressors": BloscCodec(cname="zstd", clevel=9, shuffle="bitshuffle")}
    else:
        import numcodecs
        from imagecodecs.numcodecs import Jpegxl

        numcodecs.register_codec(Jpegxl)
        options = {"zarr_format": 2, "compressors": Jpegxl(lossless=False, distance=3.0)}
    array = zarr.create_array(str(path), shape=image.shape, chunks=image.shape, dtype=image.dtype, **options)
    array[:] = image


def open_group(path, codec):
    import zarr

    zarr.open_group(str(path), mode="w", zarr_format=3 if codec == "zstd" else 2)


def write_release(root, layout=RELEASED, wells=4, sites=2, size=(40, 48), missing=(), seed=0):
    """Write two plates of two sources, zstd and mq, and return the path of the index.

    wells: of every perturbation and, three times as many, of DMSO, on each plate. missing: (source, well, site) whose
    arrays are left out of the mq store.
    """
    rng = np.random.default_rng(seed)
    stores = {name: root / layout["images"] / f"{codec}.zarr" for name, codec in CODECS.items()}
    for name, store in stores.items():
        store.parent.mkdir(parents=True, exist_ok=True)
        open_group(store, name)
    rows, perturbations = [], []
    for source, (batch, plate) in SOURCES.items():
        names = [name for name in MECHANISMS for _ in range(wells)] + [DMSO] * 3 * wells
        for number, name in enumerate(names):
            well = f"{'ABCDEFGH'[number // 12]}{number % 12 + 1:02d}"
            place = {
                "Metadata_Source": source,
                "Metadata_Batch": batch,
                "Metadata_Plate": plate,
                "Metadata_Well": well,
            }
            perturbations.append(
                {"Metadata_Well_Key": "__".join(place.values()), **place, "Metadata_JCP2022": name}
                | {"Metadata_pert_type": "negcon" if name == DMSO else "trt"}
            )
            for site in range(1, sites + 1):
                key = key_of(source, well, site)
                urls = {
                    f"URL_Orig{c}": f"s3://cellpainting-gallery/cpg0016-jump/{key}_{c}.tiff" for c in CHANNELS
                }
                rows.append({"Metadata_Site_Key": key, **place, "Metadata_Site": site, **urls})
                image = picture(rng, MECHANISMS.get(name, -1), size)
                for variant, store in stores.items():
                    if variant == "zstd" or (source, well, site) not in missing:
                        write_array(store / key, image, variant)
    folder = root / layout["metadata"]
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / INDEX)
    pd.DataFrame(perturbations).to_parquet(folder / "jump_lite_perturbation_metadata.parquet")
    annotations().to_parquet(folder / "jump_lite_refchem_annotations.parquet")
    return folder / INDEX


def annotations():
    """RefChemDB table with the columns of the release: two inhibited targets, one activated, one of no direction."""
    inhibitor = {
        "mode": "Negative",
        "modality": "crispr",
        "modality_clean": "Negative",
        "cmpd_pert_dir_matched": True,
    }
    activator = {
        "mode": "Positive",
        "modality": "orf",
        "modality_clean": "Positive",
        "cmpd_pert_dir_matched": True,
    }
    unknown = {
        "mode": "unspecified",
        "modality": "crispr",
        "modality_clean": "Negative",
        "cmpd_pert_dir_matched": False,
    }
    listed = [
        ("JCP2022_000001", "GENEA", "JCP2022_800001", "Tier1", "Tier1", 9, inhibitor),
        ("JCP2022_000002", "GENEA", "JCP2022_800001", "Tier2", "Tier2", 5, inhibitor),
        ("JCP2022_000003", "GENEB", "JCP2022_900001", "Tier2", "Tier2", 5, activator),
        ("JCP2022_000004", "GENEB", "JCP2022_900001", "Tier3", "Tier2", 2, activator),
        ("JCP2022_000005", "GENEC", "JCP2022_800001", "Tier3", "Tier3", 2, unknown),
        ("JCP2022_000006", "GENEC", "JCP2022_800001", "Tier3", "Tier3", 2, unknown),
    ]
    columns = (
        "Metadata_JCP2022",
        "target",
        "Metadata_JCP2022_target",
        "CrossModalityTier",
        "WithinModalityTier",
        "support",
    )
    return pd.DataFrame(
        [
            dict(zip(columns, row[:-1], strict=True))
            | row[-1]
            | {"target_type": "gene", "activity_class": "active"}
            for row in listed
        ]
    )


def many_sites(root, count, codec="mq"):
    """A store of `count` sites on one plate, all copies of one array, and its index beside it; returns the index."""
    store = root / f"{CODECS[codec]}.zarr"
    open_group(store, codec)
    model = root / "model.zarr" / "array"
    write_array(model, picture(np.random.default_rng(0), 0, (32, 32)), codec)
    rows = []
    for number in range(count):
        well = f"{'ABCDEFGHIJKLMNOP'[number // 96 % 16]}{number // 4 % 24 + 1:02d}"
        place = {"Metadata_Source": "source_4", "Metadata_Batch": "B", "Metadata_Plate": f"P{number // 1536}"}
        place |= {"Metadata_Well": well, "Metadata_Site": number % 4 + 1}
        key = "__".join(map(str, place.values()))
        rows.append({"Metadata_Site_Key": key, **place})
        shutil.copytree(model, store / key)
    pd.DataFrame(rows).to_parquet(root / INDEX)
    return root / INDEX
