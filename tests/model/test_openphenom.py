"""Released weights: parity with a plain fp64 transcription of the published form, and what is refused.

Weights are a pure function of tensor name and shape, so nothing is downloaded; sizes are small, names are the file's.
"""

import math
import pickle
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import camae
from camae.errors import CamaeError
from camae.model import load, save

D, DEPTH, HEAD, P, GRID, W, DECODER_DEPTH = 128, 2, 64, 8, 4, 64, 2
N = GRID**2
STAINS = ["DNA", "ER", "Actin", "RNA", "Mito", "AGP"]
LAYOUTS = ("timm<=1.0.24", "mlp")


def synthetic(name, shape):
    """A tensor from its name and shape alone; scales keep every branch of the model alive."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {shape}".encode()))
    x = torch.randn(shape, generator=generator)
    if len(shape) > 1 and shape[0] > 1:
        return x / math.sqrt(math.prod(shape[1:]))  # activations stay of order one
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * x
    return 0.5 * x


def sincos(width, channels, grid):
    """(1, 1 + channels * grid^2, width): zero for the class token, then one table for every channel."""
    quarter = width // 4
    omega = 10000.0 ** (-np.arange(quarter) / quarter)
    row, column = np.divmod(np.arange(grid * grid), grid)
    angles = [np.outer(row, omega), np.outer(column, omega)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)
    full = np.concatenate([np.zeros((1, width)), np.tile(table, (channels, 1))])
    return torch.tensor(full, dtype=torch.float32)[None]


def released_state(make=synthetic, depth=DEPTH, decoder_depth=DECODER_DEPTH, sizes=(D, W, P, GRID)):
    """Every tensor of a released file, {name: tensor}."""
    D, W, P, grid = sizes
    shapes = {"cls_token": (1, 1, D), "patch_embed.proj.weight": (D, 1, P, P), "patch_embed.proj.bias": (D,)}
    shapes |= {"fc_norm.weight": (D,), "fc_norm.bias": (D,)}
    for b in range(depth):
        block = {"mlp_bias": (4 * D,), "in_proj.weight": (7 * D, D), "ls.gamma": (D,)}
        block |= {f"in_norm.{x}": (D,) for x in ("weight", "bias")}
        block |= {f"{q}_norm.{x}": (HEAD,) for q in "qk" for x in ("weight", "bias")}
        block |= {"attn_out_proj.weight": (D, D), "attn_out_proj.bias": (D,)}
        block |= {"mlp_out_proj.weight": (D, 4 * D), "mlp_out_proj.bias": (D,)}
        shapes |= {f"blocks.{b}.{k}": v for k, v in block.items()}
    shapes = {f"encoder.vit_backbone.{k}": v for k, v in shapes.items()}
    mlp = {"fc1.weight": (4 * W, W), "fc1.bias": (4 * W,), "fc2.weight": (W, 4 * W), "fc2.bias": (W,)}
    decoder = {"mask_token": (1, 1, W), "placeholder": (1, 1, W)}
    decoder |= {f"modality_tokens.{c}": (1, 1, W) for c in range(6)}
    decoder |= {"cross_attention.q.weight": (W, W), "cross_attention.kv.weight": (2 * W, W)}
    decoder |= {"cross_attention.proj.weight": (W, W), "cross_attention.proj.bias": (W,)}
    decoder |= {f"mlp.{k}": v for k, v in mlp.items()}
    decoder |= {f"{n}_norm.{x}": (W,) for n in ("context", "query", "out") for x in ("weight", "bias")}
    for c in range(6):
        for d in range(decoder_depth):
            block = {f"norm{i}.{x}": (W,) for i in (1, 2) for x in ("weight", "bias")}
            block |= {"attn.qkv.weight": (3 * W, W), "attn.qkv.bias": (3 * W,)}
            block |= {"attn.proj.weight": (W, W), "attn.proj.bias": (W,)}
            block |= {f"mlp.{k}": v for k, v in mlp.items()}
            decoder |= {f"decoders.{c}.{d}.{k}": v for k, v in block.items()}
    shapes |= {f"decoder.{k}": v for k, v in decoder.items()}
    shapes |= {"encoder_decoder_proj.weight": (W, D), "encoder_decoder_proj.bias": (W,)}
    shapes |= {"decoder_pred.weight": (P * P, W), "decoder_pred.bias": (P * P,)}
    state = {name: make(name, shape) for name, shape in shapes.items()}
    state["encoder.vit_backbone.pos_embed"] = sincos(D, 11, grid)
    state["decoder.pos_embeddings"] = sincos(W, 6, grid)
    return state


class Published:
    """The released model's math for one uint8 image, written out in fp64."""

    def __init__(self, state, layout):
        self.state = {k: v.double() for k, v in state.items()}
        self.layout = layout

    def linear(self, x, name, bias=True):
        y = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if bias else y

    def norm(self, x, name, eps):
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def gelu(x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    @staticmethod
    def attention(q, k, v, heads):
        q, k, v = (t.reshape(len(t), heads, -1).transpose(0, 1) for t in (q, k, v))
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), -1)
        return (weights @ v).transpose(0, 1).flatten(1)

    def pixels(self, image):
        x = image.double() / 255
        mean = x.mean((1, 2), keepdim=True)
        x = (x - mean) / ((x - mean).square().mean((1, 2), keepdim=True) + 1e-5).sqrt()
        C, H, _ = x.shape
        return x.reshape(C, H // P, P, H // P, P).permute(0, 1, 3, 2, 4).reshape(-1, P * P)

    def block(self, x, b):
        e = f"encoder.vit_backbone.blocks.{b}"
        bias, zeros = self.state[f"{e}.mlp_bias"], torch.zeros(3 * D, dtype=torch.float64)
        shifted = self.layout == "timm<=1.0.24"
        fused = self.linear(self.norm(x, f"{e}.in_norm", 1e-6), f"{e}.in_proj", bias=False)
        fused = fused + torch.cat([zeros, bias] if shifted else [bias, zeros])
        mlp, q, k, v = fused.split([4 * D, D, D, D], 1)
        q = self.norm(q.reshape(len(q), -1, HEAD), f"{e}.q_norm", 1e-6).flatten(1)
        k = self.norm(k.reshape(len(k), -1, HEAD), f"{e}.k_norm", 1e-6).flatten(1)
        attended = self.linear(self.attention(q, k, v, D // HEAD), f"{e}.attn_out_proj")
        return x + self.state[f"{e}.ls.gamma"] * (attended + self.linear(self.gelu(mlp), f"{e}.mlp_out_proj"))

    def encode(self, image, keep=None):
        """(1 + kept, D), class token first."""
        e = "encoder.vit_backbone"
        weight = self.state[f"{e}.patch_embed.proj.weight"].flatten(1)
        x = self.pixels(image) @ weight.T + self.state[f"{e}.patch_embed.proj.bias"]
        position = self.state[f"{e}.pos_embed"][0]
        x = x + position[1 : 1 + len(x)]
        x = x if keep is None else x[keep]
        x = torch.cat([self.state[f"{e}.cls_token"][0] + position[:1], x])
        for b in range(DEPTH):
            x = self.block(x, b)
        return x

    def reconstruct(self, image, noise, ratio):
        """(6 * N, P * P) and the mask, 1 = masked."""
        keep = noise.argsort()[: int(len(noise) * (1 - ratio))]
        mask = torch.ones(len(noise), dtype=torch.float64)
        mask[keep] = 0
        x = self.linear(self.encode(image, keep), "encoder_decoder_proj")[1:]
        z = self.state["decoder.mask_token"][0].repeat(len(noise), 1)
        z[keep] = x
        z = z + self.state["decoder.pos_embeddings"][0, 1:]
        z = z + torch.cat([self.state[f"decoder.modality_tokens.{c}"][0].expand(N, -1) for c in range(6)])
        k, v = self.linear(
            self.norm(z, "decoder.context_norm", 1e-5), "decoder.cross_attention.kv", bias=False
        ).chunk(2, 1)
        return torch.cat([self.channel(z[c * N : (c + 1) * N], k, v, c) for c in range(6)]), mask

    def channel(self, z, k, v, c):
        q = self.linear(self.norm(z, "decoder.query_norm", 1e-5), "decoder.cross_attention.q", bias=False)
        z = self.linear(self.attention(q, k, v, 8), "decoder.cross_attention.proj")
        z = z + self.mlp(self.norm(z, "decoder.out_norm", 1e-5), "decoder.mlp")
        for d in range(DECODER_DEPTH):
            name = f"decoder.decoders.{c}.{d}"
            qkv = self.linear(self.norm(z, f"{name}.norm1", 1e-5), f"{name}.attn.qkv").chunk(3, 1)
            z = z + self.linear(self.attention(*qkv, 16), f"{name}.attn.proj")
            z = z + self.mlp(self.norm(z, f"{name}.norm2", 1e-5), f"{name}.mlp")
        return self.linear(z, "decoder_pred")

    def mlp(self, x, name):
        return self.linear(self.gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")

    def loss(self, image, noise, ratio, alpha):
        prediction, mask = self.reconstruct(image, noise, ratio)
        target = self.pixels(image)
        mse = ((prediction - target).square().mean(1) * mask).sum() / mask.sum()
        magnitudes = [torch.fft.fft2(t.reshape(-1, P, P)).abs() for t in (prediction, target)]
        fourier = ((magnitudes[0] - magnitudes[1]).abs().mean((1, 2)) * mask).sum() / mask.sum()
        return torch.stack([(1 - alpha) * mse + alpha * fourier, mse, fourier])


def image(channels, seed=0):
    size = (channels, P * GRID, P * GRID)
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def names(channels):
    return [f"stain {c}" for c in range(channels)]


@pytest.fixture(scope="module")
def state():
    return released_state()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    """As published: a torch zip pickle under the name model.safetensors, with a config.json beside it."""
    folder = tmp_path_factory.mktemp("openphenom")
    torch.save({"state_dict": state}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"mask_ratio": 0.0}')
    return folder / "model.safetensors"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", range(1, 12))
def test_tokens_equal_the_published_maths(file, state, layout, channels):
    model = load(file, bias_layout=layout).double()
    tokens, _ = model.encode(model.as_batch([image(channels)], [names(channels)]))
    # fp64 on both sides: rounding of sums of some hundred terms of order one, over two blocks
    torch.testing.assert_close(
        tokens, Published(state, layout).encode(image(channels)), atol=1e-10, rtol=1e-10
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", range(1, 12))
def test_every_pooling_equals_the_published_maths(file, state, layout, channels):
    model = load(file, bias_layout=layout)
    tokens = Published(state, layout).encode(image(channels))
    expected = {"mean": tokens[1:].mean(0), "cls": tokens[0]}
    expected["per_channel"] = tokens[1:].reshape(channels, N, D).mean(1)
    for pool, vector in expected.items():
        got = camae.embed(image(channels), names(channels), model, pool=pool)
        # fp32 rounding, 6e-8 relative, grows with the square root of ~1,000 terms a row and 10 layers deep
        torch.testing.assert_close(got.double(), vector, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.85])
def test_masks_reconstruction_and_loss_equal_the_published_maths(file, state, layout, ratio):
    model, published = load(file, bias_layout=layout).double(), Published(state, layout)
    noise = torch.rand(6 * N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    patches, mask = model.reconstruct(image(6), STAINS, noise, mask_ratio=ratio)
    expected, expected_mask = published.reconstruct(image(6), noise, ratio)
    assert torch.equal(mask.double(), expected_mask)
    torch.testing.assert_close(patches, expected, atol=1e-9, rtol=1e-9)
    losses = model.loss(image(6), STAINS, noise, mask_ratio=ratio, alpha=0.01)
    got = torch.stack([losses[k] for k in ("total", "mse", "fourier")]).detach()
    torch.testing.assert_close(got, published.loss(image(6), noise, ratio, 0.01), atol=1e-9, rtol=1e-9)


def test_a_batch_pools_its_masked_tokens_as_released(file, state):
    model, published = load(file).double(), Published(state, LAYOUTS[0])
    batch = torch.stack([image(6), image(6, 1)])
    noise = torch.rand(2, 6 * N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = model.loss(batch, STAINS, noise, reduction="tokens")["total"].detach()
    one_by_one = [published.loss(x, n, 0.75, 0.01)[0] for x, n in zip(batch, noise, strict=True)]
    torch.testing.assert_close(got, torch.stack(one_by_one).mean(), atol=1e-9, rtol=1e-9)


def test_bias_layouts_differ_as_much_as_they_should(file):
    """The trap: the same file under the other layout gives other vectors, with no error to tell."""
    a, b = (camae.embed(image(6), STAINS, load(file, bias_layout=layout)) for layout in LAYOUTS)
    assert torch.cosine_similarity(a, b, dim=0) < 0.99
    assert load(file).config.bias_layout == LAYOUTS[0]
    assert load(file, bias_layout="timm>=1.0.25").config.bias_layout == "mlp"


def test_what_the_model_says_about_itself(file):
    model = load(file)
    assert model.channels == STAINS
    c = model.config
    assert (c.width, c.depth, c.heads, c.patch, c.crop) == (D, DEPTH, D // HEAD, P, P * GRID)
    assert (c.standardization, c.mask_ratio, c.drop_path) == ("openphenom", 0.75, 0.1)
    assert load(file, channels=list("abcdef"), mask_ratio=0.85).config.mask_ratio == 0.85
    with pytest.raises(CamaeError, match="6 decoders, but 2 channel names"):
        load(file, channels=["a", "b"])


def test_every_form_of_the_file_gives_the_same_model(file, state, tmp_path):
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "real.safetensors")
    torch.save(state, tmp_path / "bare.pt")
    (tmp_path / "folder").mkdir()
    torch.save({"state_dict": state}, tmp_path / "folder" / "pytorch_model.bin")
    expected = load(file).state_dict()
    for path in (file.parent, tmp_path / "real.safetensors", tmp_path / "bare.pt", tmp_path / "folder"):
        found = load(path).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_half_precision_files_are_loaded_in_float32(state, tmp_path):
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "half.pt")
    model = load(tmp_path / "half.pt")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weight = state["decoder_pred.weight"]
    assert torch.equal(model.decoder.heads[0].weight, weight.half().float())


def test_position_tables_that_are_not_the_formula_are_used_as_stored(state, tmp_path):
    changed = dict(state)
    for name in ("encoder.vit_backbone.pos_embed", "decoder.pos_embeddings"):
        changed[name] = synthetic(name, tuple(state[name].shape))
    torch.save({"state_dict": changed}, tmp_path / "model.pt")
    model, published = load(tmp_path / "model.pt").double(), Published(changed, LAYOUTS[0])
    for channels in (1, 6, 11):
        tokens, _ = model.encode(model.as_batch([image(channels)], [names(channels)]))
        # the class token and its position are added in fp32, as there: 6e-8 relative
        torch.testing.assert_close(tokens, published.encode(image(channels)), atol=1e-6, rtol=1e-5)
    noise = torch.rand(6 * N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    patches, _ = model.reconstruct(image(6), STAINS, noise)
    torch.testing.assert_close(patches, published.reconstruct(image(6), noise, 0.75)[0], atol=1e-6, rtol=1e-5)
    with pytest.raises(CamaeError, match="12 channels, but the model has positions for 11"):
        camae.embed(image(12), names(12), model.float())
    save(model, tmp_path / "ours.safetensors")
    assert torch.equal(
        camae.embed(image(3), names(3), model), camae.embed(image(3), names(3), tmp_path / "ours.safetensors")
    )


def without(state):
    del state["encoder.vit_backbone.blocks.1.q_norm.bias"], state["decoder.mask_token"]


def with_more(state):
    state["encoder.vit_backbone.norm.weight"] = torch.zeros(D)


def with_shape(state):
    state["encoder.vit_backbone.cls_token"] = torch.zeros(1, 1, D + 4)


def with_all_three(state):
    without(state), with_more(state), with_shape(state)


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (without, ["2 missing tensors", "blocks.1.q_norm.bias", "decoder.mask_token"]),
        (with_more, ["1 unexpected tensors", "encoder.vit_backbone.norm.weight"]),
        (with_shape, ["1 wrongly shaped", "cls_token (1, 1, 132) instead of (1, 1, 128)"]),
        (with_all_three, ["2 missing", "1 unexpected", "1 wrongly shaped"]),
    ],
)
def test_incomplete_files_are_refused_with_a_list(state, tmp_path, change, sentences):
    changed = dict(state)
    change(changed)
    torch.save({"state_dict": changed}, tmp_path / "model.safetensors")
    with pytest.raises(CamaeError) as caught:
        load(tmp_path)
    assert all(sentence in str(caught.value) for sentence in sentences)


@pytest.mark.parametrize("name", sorted(released_state()))
def test_every_tensor_is_needed_in_its_shape(state, tmp_path, name, monkeypatch):
    """Each one missing, then each one of another shape: refused, and named."""
    from camae.model import openphenom

    missing = {k: v for k, v in state.items() if k != name}
    with pytest.raises(CamaeError, match=f"1 missing tensors: {name}$"):
        openphenom.translate(tmp_path, missing)
    first, *rest = state[name].shape
    with pytest.raises(CamaeError, match=f"wrongly shaped tensors:.*{name}"):
        openphenom.translate(tmp_path, state | {name: torch.zeros(first + 1, *rest)})


class Evil:
    def __reduce__(self):
        return (print, ("code of a pickle ran",))


def lfs_pointer(path, state):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 712342546\n")


def half_a_zip(path, state):
    torch.save({"state_dict": state}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_a_safetensors(path, state):
    save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda p, s: torch.save({"state_dict": s, "extra": Evil()}, p), "its pickle could run code"),
        (lambda p, s: p.write_bytes(pickle.dumps(Evil())), "a bare pickle, which is never loaded"),
        (lambda p, s: torch.save(s, p, _use_new_zipfile_serialization=False), "a bare pickle"),
        (lambda p, s: torch.save([1, 2], p), "without a state dict"),
        (lambda p, s: save_file({"a": torch.zeros(2)}, p), "neither a camae model"),
        (lambda p, s: p.write_text("<html>sign in</html>"), "neither safetensors nor a torch file"),
        (lambda p, s: p.write_bytes(b""), "neither safetensors nor a torch file"),
        (lfs_pointer, "a git-lfs pointer"),
        (half_a_zip, "not a readable model file"),
        (half_a_safetensors, "not a readable model file"),
    ],
)
def test_other_content_is_refused_in_a_sentence(state, tmp_path, capsys, write, sentence):
    write(tmp_path / "model.safetensors", state)
    with pytest.raises(CamaeError, match=sentence) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "model.safetensors"))
    assert "code of a pickle ran" not in capsys.readouterr().out
