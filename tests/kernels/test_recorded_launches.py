"""Every launch of whole flows, run on stand-ins for CUDA tensors: held to the committed table, launches.json.

A process of its own per architecture records (it changes what torch says of CUDA). To make the table anew:
`python tests/kernels/test_recorded_launches.py`, then `python -m camae.kernels._recorder --update --missing`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

pytest.importorskip("triton", reason="the kernels need triton, which is installed on Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("a process that interprets kernels cannot compile them", allow_module_level=True)

import camae
from camae.dataloader.plane_batch import PlaneBatch
from camae.inference import accelerate
from camae.kernels._recorder import Launches, Recording, Row, check, recording
from camae.model import CAMAE, Backends, preset
from camae.model.activation_checkpointing import set_recompute
from camae.training.config import TrainConfig
from camae.training.optimization import build_optimizer

ARCHES = ("sm_80", "sm_90")
STAINS = ("DNA", "ER", "Actin", "RNA", "Mito", "AGP")
ELEVEN = tuple(f"c{i}" for i in range(11))
THREE = ELEVEN[:3]
DEVICE = "cuda:0"


def images(counts, dtype, crop=256):
    """One image of each number of channels: a ramp, so that no plane is constant."""
    ramp = torch.arange(crop, dtype=torch.float32).expand(crop, crop).clamp(max=255)
    return [ramp.expand(c, crop, crop).to(getattr(torch, dtype)).contiguous() for c in counts]


def batch_of(counts, dtype, channels=ELEVEN):
    span = (0.0, 255.0) if dtype == "float32" else None
    names = [list(channels[:c]) for c in counts]
    return PlaneBatch.from_images(images(counts, dtype), names, value_range=span).to(DEVICE)


def model_of(name="ca_mae_vit_b16", channels=ELEVEN, dtype=torch.float32, **changes):
    """One encoder block and one for each channel: the others of a model launch the same kernels."""
    config = preset(name, channels=channels, depth=1, **changes)
    if config.decoder.depth > 1:
        config = replace(config, decoder=replace(config.decoder, depth=1))
    if dtype != torch.float32:
        return CAMAE(config).to(dtype).to(DEVICE)
    with torch.device(DEVICE):  # without values nothing is initialized
        model = CAMAE(config)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(DEVICE))
    return model


def encoder_of(name="ca_mae_vit_s16", **changes):
    """A model to embed with, any channels."""
    return model_of(name, ("a",), decoder="small", **changes).eval()


def train_step(model, counts, dtype="uint8", precision="bf16", optimizer="lion", selective=False):
    """One step as the trainer makes it: loss, gradients, clipping, update."""
    model.train()
    set_recompute(model, 0, selective)
    channels = model.config.channels
    batch = batch_of(counts, dtype, channels)
    noise = torch.rand(model.total_patches(batch), device=DEVICE)
    with torch.autocast("cuda", torch.bfloat16) if precision == "bf16" else nullcontext():
        model.batch_loss(batch, noise)["total"].backward()
    parameters = [p for p in model.parameters() if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    build_optimizer(model, TrainConfig(steps=1, model="ca_mae_vit_b16", optimizer=optimizer)).step()


RAGGED = (1, 3, 5, 6, 11)


def steps() -> Iterator[tuple[str, Callable[[], None]]]:
    """Training steps: patches, stored types, precisions, decoders, optimizers, recomputation."""
    for patch in (16, 8):
        for dtype in ("uint8", "uint16", "float32"):
            for precision in ("bf16", "fp32"):
                # All eleven channels once: each has blocks of its own, which launch the same kernels.
                channels, counts = (ELEVEN, RAGGED) if (patch, dtype) == (16, "uint8") else (THREE, (1, 3, 2))
                yield (
                    f"step P{patch} {dtype} {precision}",
                    lambda p=patch, d=dtype, x=precision, c=channels, n=counts: train_step(
                        model_of(f"ca_mae_vit_b{p}", c, decoder="small"), n, d, x
                    ),
                )
    small = {"channels": THREE, "decoder": "small"}
    for decoder in ("released", "paper", "cross"):
        yield (
            f"step decoder {decoder}",
            lambda d=decoder: train_step(model_of(channels=THREE, decoder=d), (1, 3)),
        )
    for size in ("s16", "l16"):
        yield f"step {size}", lambda s=size: train_step(model_of(f"ca_mae_vit_{s}", **small), (3, 2))
    yield "step one channel", lambda: train_step(model_of(channels=("a",), decoder="small"), (1, 1))
    yield "step one crop", lambda: train_step(model_of(**small), (3,))
    yield "step vit", lambda: train_step(model_of(**small, block="sequential"), (3, 2))
    yield "step adamw", lambda: train_step(model_of(**small), (1, 3), optimizer="adamw")
    yield "step selective", lambda: train_step(model_of(**small), (1, 3), selective=True)
    atomic = Backends(attention="triton_atomic")
    yield "step triton_atomic", lambda: train_step(model_of(**small).use_backends(atomic), (1, 3))
    yield "step bf16 weights", lambda: train_step(model_of(**small, dtype=torch.bfloat16), (1, 3))


def embeddings() -> Iterator[tuple[str, Callable[[], object]]]:
    """`camae.embed`: stored types, patches, precisions, pooling, regions, and both accelerated forms."""

    def embed(model, counts, stored="uint8", **options):
        span = {"value_range": (0.0, 255.0)} if stored == "float32" else {}
        names = [list(ELEVEN[:c]) for c in counts]
        return camae.embed(images(counts, stored), names, model, **options, **span)

    for patch in (16, 8):
        for dtype in ("uint8", "uint16", "float32"):
            for compute in (None, "float32"):
                yield (
                    f"embed P{patch} {dtype} {compute}",
                    lambda p=patch, d=dtype, c=compute: embed(
                        encoder_of(f"ca_mae_vit_s{p}"), RAGGED, d, dtype=c
                    ),
                )
    yield "embed one image", lambda: embed(encoder_of(), (1,))
    yield "embed crops of one size", lambda: embed(encoder_of("ca_mae_vit_l16"), (6,) * 8)
    region = np.zeros((256, 256), bool)
    region[:40, :60] = True
    yield "embed a region", lambda: embed(encoder_of(), (3,), region=[region])
    for block in ("parallel", "sequential"):
        for linear in ("float32", "bfloat16"):
            yield (
                f"accelerate {block} {linear}",
                lambda b=block, x=linear: embed(accelerate(encoder_of(block=b), x), RAGGED),
            )
    yield "released model", lambda: embed(released(), (6, 6))
    yield (
        "released model, pictures",
        lambda: released().reconstruct(torch.stack(images((6, 6), "uint8")), list(STAINS)),
    )
    yield (
        "pictures",
        lambda: (
            model_of(channels=STAINS).eval().reconstruct(torch.stack(images((6, 6), "uint16")), list(STAINS))
        ),
    )


def released():
    """The form of the released S/16: shifted bias, its own standardization, stored positions, deep wide decoders."""
    return model_of(
        "ca_mae_vit_s16",
        channels=STAINS,
        bias_layout="timm<=1.0.24",
        standardization="openphenom",
        stored_positions=11,
    ).eval()


def public(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """`camae.train` with its probe and pictures, and `camae.embed_screen` of its model, with default settings."""
    screen = write_screen(folder / "screen")
    options = {"depth": 1, "decoder": "small"}
    yield (
        "camae.train",
        lambda: camae.train(
            screen,
            "ca_mae_vit_b16",
            out=folder / "run",
            steps=2,
            model_options=options,
            batch_size=4,
            picture_every=1,
            probe={"data": str(screen), "every": 1},
            device=DEVICE,
            workers=1,
            quiet=True,
        ),
    )
    yield (
        "camae.embed_screen",
        lambda: camae.embed_screen(
            screen, model=folder / "run", out=folder / "embeddings", device=DEVICE, quiet=True
        ),
    )


def write_screen(folder: Path) -> Path:
    """2 plates of 4 wells of one 256-px site in three channels; returns its manifest."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir(parents=True)
    for plate in ("P1", "P2"):
        for i in range(4):
            row = {"Metadata_Plate": plate, "Metadata_Well": f"A{i + 1:02d}", "Metadata_Site": "1"}
            row |= {"Metadata_Perturbation": ("DMSO", "gene")[i % 2]}
            for channel in STAINS[:3]:
                row[channel] = f"{plate}_{i}_{channel}.tif"
                tifffile.imwrite(folder / row[channel], rng.integers(0, 4000, (256, 256)).astype(np.uint16))
            rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def record_all(arch: str) -> dict[str, Recording]:
    """Every flow on stand-ins for an `arch`: name -> what it launched."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flow in (*steps(), *embeddings(), *public(Path(folder))):
            with recording(arch) as found[name]:
                torch.manual_seed(0)
                flow()
    return found


def distinct(flows: dict[str, Recording]) -> list[Row]:
    return list(dict.fromkeys(row for flow in flows.values() for row in flow.rows))


def kernels_of(flow: Callable[[], object]) -> list[str]:
    """What a flow launches on stand-ins for an H100, in order."""
    with recording("sm_90") as found:
        flow()
    return found.names()


@pytest.fixture(scope="module")
def table() -> Launches:
    return Launches.read()


@pytest.mark.parametrize("arch", [pytest.param("sm_80", marks=pytest.mark.full), "sm_90"])
def test_table_is_every_launch_of_every_flow(table, arch):
    """Recorded anew; a launch that is new, and one that is gone, are both named."""
    rows = distinct(record_all(arch))
    anew = "run this file, then python -m camae.kernels._recorder --update --missing"
    assert [str(row) for row in table.unlisted(rows)] == [], f"not in launches.json: {anew}"
    assert [str(row) for row in table.rows if row.arch == arch and row not in rows] == [], anew


# A block's forward pass: norm, product, bias + GELU, product, norm of the keys, attention with both norms inside,
# product, residual sum (of a block before another: in that one's norm). Nothing in between but products: no pass over q
# and k in fp32.
BLOCK = [
    "residual_norm.forward_kernel",
    "gelu_split.forward_kernel",
    "varlen_attention.key_norm_kernel",
    "varlen_attention.forward_kernel",
    "residual_norm.forward_kernel",
]
BLOCK_BACKWARD = [
    "residual_norm.backward_kernel",
    "varlen_attention.key_norm_kernel",
    "varlen_attention.query_gradient_kernel",
    "varlen_attention.key_gradient_kernel",
    "gelu_split.backward_kernel",
    "residual_norm.backward_kernel",
]


def test_embedding_launches_fused_kernels_alone(monkeypatch):
    def fails(*_):
        raise AssertionError("q and k are normed in a pass of their own")

    monkeypatch.setattr("camae.kernels.varlen_attention.head_norm", fails)
    launched = kernels_of(lambda: camae.embed(images((3,), "uint8")[0], list(THREE), encoder_of()))
    assert launched == ["tokenize.byte_statistics_kernel", "tokenize.tokenize_kernel", *BLOCK]


def test_accelerated_blocks_launch_the_same_kernels():
    launched = kernels_of(
        lambda: camae.embed(images((3,), "uint8")[0], list(THREE), accelerate(encoder_of(), "bfloat16"))
    )
    assert launched[2:] == BLOCK


def test_training_launches_fused_kernels_alone(tmp_path, monkeypatch):
    """`camae.train` with default settings: a step is the tokenizer, blocks, the loss, and their gradients."""

    def fails(*_):
        raise AssertionError("q and k are normed in a pass of their own")

    monkeypatch.setattr("camae.kernels.varlen_attention.head_norm", fails)
    screen = write_screen(tmp_path / "screen")
    options = {"depth": 1, "decoder": {"cross_attention": "shared", "depth": 0}}
    settings = {"model_options": options, "batch_size": 4, "device": DEVICE, "quiet": True, "steps": 1}
    launched = kernels_of(lambda: camae.train(screen, "ca_mae_vit_b16", out=tmp_path / "run", **settings))
    assert launched[:7] == ["tokenize.integer_statistics_kernel", "tokenize.tokenize_kernel", *BLOCK]
    end = launched.index("tokenize.weight_gradient_kernel")
    assert sorted(launched[end - len(BLOCK_BACKWARD) : end]) == sorted(BLOCK_BACKWARD)
    assert set(launched[end + 1 :]) <= {"lion.lion_kernel", "lion.square_kernel"} | set(launched[:end])
    assert launched.count("reconstruction_loss.loss_kernel") == 1
    # One block, and one cross-attention without q/k norms.
    forward = launched[: launched.index("reconstruction_loss.loss_kernel")]
    assert forward.count("varlen_attention.forward_kernel") == 2
    assert forward.count("varlen_attention.key_norm_kernel") == 1


@pytest.mark.parametrize("optimizer", ["lion", "adamw"])
def test_steps_between_logged_ones_wait_for_nothing(tmp_path, monkeypatch, optimizer):
    """No read from the device, and no copy to it that the host waits for, from the third step on."""
    from camae.training.trainer import Trainer

    step, watched = Trainer._step, []

    def counted(self, n, batches):
        traffic = found.traffic
        before = len(traffic.reads) + len(traffic.waits)
        result = step(self, n, batches)
        if n > 2 and not self._is_logged(n + 1):
            watched.append((n, (traffic.reads + traffic.waits)[before:]))
        return result

    monkeypatch.setattr(Trainer, "_step", counted)
    screen = write_screen(tmp_path / "screen")
    options = {"depth": 1, "decoder": {"cross_attention": "shared", "depth": 1}}
    settings = {"model_options": options, "batch_size": 4, "quiet": True, "steps": 8, "log_every": 8}
    with recording("sm_90") as found:
        camae.train(
            screen, "ca_mae_vit_b16", out=tmp_path / "run", device=DEVICE, optimizer=optimizer, **settings
        )
        # The control: what the watched steps must not do is seen where it is done.
        before = len(found.traffic.waits)
        x = torch.zeros(4, device=DEVICE)
        x[torch.tensor([1]).to(DEVICE, non_blocking=True)] = 0.0
        torch.zeros(2).to(DEVICE)
        assert len(found.traffic.waits) == before + 2
    assert len(watched) > 3
    assert all(not waits for _, waits in watched), watched


def test_an_unlisted_launch_is_found(table):
    row = next(iter(table.rows))
    other = replace(row, warps=16 * row.warps)
    assert table.unlisted([row, other, other]) == [other]


@pytest.mark.full
def test_an_oversize_tile_is_found(table):
    """256 x 256 scores on 4 warps fit neither registers nor shared memory."""
    row = next(r for r in table.rows if r.kernel == "varlen_attention.triton_forward.forward_kernel")
    constants = tuple((n, 256 if n in ("BLOCK_M", "BLOCK_N") else v) for n, v in row.constants)
    _, found = check(replace(row, constants=constants, warps=4, stages=4), {})
    assert any("spills, none allowed" in sentence for sentence in found)


def test_a_launch_around_the_launcher_fails():
    """Without the device guard of the launcher a kernel meets no device here; test_launch.py reads the source too."""
    from camae.kernels.tokenize.triton import float_statistics_kernel

    # What Triton says where there is no driver: 3.7 that no driver is active, others that no library is found.
    with recording("sm_90") as found, pytest.raises((RuntimeError, OSError, AssertionError)):
        float_statistics_kernel[(1,)](torch.empty(1, 4, device=DEVICE))
    assert found.rows == []


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_launch_compiles_within_its_limits(table):
    """Figures of another Triton than the table's are held to the limits alone."""
    problems = [sentence for row, known in table.rows.items() for sentence in check(row, known)[1]]
    assert problems == []


def main() -> None:
    """Write the table of all launches there are, with the figures that are known of them."""
    rows = [row for arch in ARCHES for row in distinct(record_all(arch))]
    table = Launches.read().with_rows(rows)
    table.write()
    lacking = sum(not figures for figures in table.rows.values())
    print(f"{len(rows)} distinct launches, {lacking} of them without figures")


if __name__ == "__main__":
    main()
