"""Tensor files: equal bytes for equal models, weights that are numbers, hostile and damaged headers."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from camae.errors import CamaeError
from camae.model import CAMAE, load, preset, save
from camae.model.tensor_files import read_tensors, save_tensors

TINY = {
    "channels": ("DNA", "ER"),
    "crop": 32,
    "patch": 8,
    "width": 32,
    "heads": 2,
    "depth": 2,
    "decoder": {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4},
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CAMAE(preset("ca_mae_vit_ti16", **TINY)).eval()


def test_fault_28_equal_models_make_equal_files(model, tmp_path):
    script = f"""
import torch
from camae.model import CAMAE, preset, save
torch.manual_seed(0)
save(CAMAE(preset("ca_mae_vit_ti16", **{TINY!r})).eval(), {str(tmp_path / "other.safetensors")!r}, b=1, a=2)
"""
    hashes = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script], check=True, env=environment)
        hashes.add(hashlib.sha256((tmp_path / "other.safetensors").read_bytes()).hexdigest())
    file = save(model, tmp_path / "model.safetensors", a=2, b=1)
    assert hashes == {hashlib.sha256(file.read_bytes()).hexdigest()}


def test_written_tensors_are_read_by_others(tmp_path):
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "a": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 4),
    }
    save_tensors(tensors, tmp_path / "x.safetensors", {"k": "v"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
    assert read_tensors(tmp_path / "x.safetensors")[0] == {"k": "v"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fault_16_weights_that_are_no_numbers_are_refused(model, tmp_path, value):
    with torch.no_grad():
        model.encoder.blocks[1].attn_out_proj.bias[3] = value
    for file in (save(model, tmp_path / "model.safetensors"), tmp_path / "model.pt"):
        if file.suffix == ".pt":
            torch.save({"state_dict": model.state_dict()}, file)
        sentence = r"1 of the 32 values of encoder.blocks.1.attn_out_proj.bias are NaN or infinite"
        with pytest.raises(CamaeError, match=sentence):
            load(file)


def test_fault_36_reconstructions_need_no_grad(model):
    images = torch.randint(0, 4000, (2, 2, 32, 32)).to(torch.uint16)
    patches, mask = model.reconstruct(images, ["DNA", "ER"])
    assert patches.numpy().shape == (2, 32, 64)
    assert not mask.requires_grad


def with_config(file, change):
    """The file with a changed configuration; tensors as they are."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    config = json.loads(header["__metadata__"]["config"])
    changed = change(config)
    header["__metadata__"]["config"] = changed if isinstance(changed, str) else json.dumps(config)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return file


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 0}, {"patch": -16}, {"width": "48"}, {"depth": 10**9}, {"depth": 999}, {"norm_eps": float("nan")},
        {"channels": list(map(str, range(10**6)))}, {"channels": list(map(str, range(4000)))}, {"channels": "DNA"},
        {"channels": [1, 2]}, {"decoder": None}, {"decoder": {"depth": 10**6}}, {"decoder": {"depth": 1000}},
        {"decoder": {"heads": True}}, {"decoder": []}, {"family": 3}, {"family": "mu_net"}, {"crop": 10**9},
        {"crop": 2**15, "patch": 1}, {"mlp_ratio": 0}, {"mlp_ratio": 63}, {"width": 65536}, {"width": 36},
        {"stored_positions": 4096}, {"color": 1}, {"name": 3}, {"block": ["parallel"]}, {"drop_path": 5}, "", "{", "[]",
        "[" * 5000, "null", "3",
    ],
)  # fmt: skip
def test_fault_17_damaged_configurations_are_one_sentence_in_a_second(model, tmp_path, change):
    file = save(model, tmp_path / "model.safetensors")
    with_config(file, lambda config: change if isinstance(change, str) else config.update(change))
    began = time.perf_counter()
    with pytest.raises(CamaeError, match=r"model\.safetensors: ") as caught:
        load(file)
    assert time.perf_counter() - began < 5  # on a busy machine; 0.1 on an idle one
    assert "\n" not in str(caught.value)


def header_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "shared": {f"t{i}": entry([1], 0, 4) for i in range(1000)},
    "many": {f"t{i}": entry([0], 0, 0) for i in range(100_000)},
    "overflow": {"a": entry([2**32, 2**32], 0, 0), "b": entry([2**63, 2**63, 4], 0, 2**64 - 1)},
    "huge": {"a": entry([2**40], 0, 2**42)},
    "negative": {"a": entry([-1], 0, 4)},
    "reversed": {"a": entry([1], 4, 0)},
    "deep": b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    "wide": b'{"a":[' + b"[]," * 5_000_000 + b"[]]}",
    "repeated": b'{"a":%s,"a":%s}' % tuple(json.dumps(entry([n], 0, 4 * n)).encode() for n in (1, 0)),
    "empty and endless": {"a": entry([2**63, 0], 0, 0), "b": entry([1], 0, 4)},
    "unknown": {"a": entry([1], 0, 4, "F3")},
    "utf8": b'{"\xff":1}',
    "metadata": {"__metadata__": {"format": "camae-model-1", "config": 3}},
}

READ = """
import resource, sys, time
from camae.errors import CamaeError
from camae.model import load
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    load(sys.argv[1])
except CamaeError as error:
    assert "\\n" not in str(error), error
    print(time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_fast_and_small(tmp_path, name):
    """Within a second and 200 MB."""
    file = header_file(tmp_path / "model.safetensors", HOSTILE[name], b"\0" * 4)
    done = subprocess.run([sys.executable, "-c", READ, str(file)], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 1
    assert megabytes < 200


def test_headers_longer_than_the_file_are_refused(tmp_path):
    for length in (10**6, 2**40, 2**64 - 1):
        file = header_file(tmp_path / "model.safetensors", {"a": entry([1], 0, 4)}, b"\0" * 4, length)
        with pytest.raises(CamaeError, match="its header claims"):
            load(file)
