"""Weights by name, from a server on the loopback that answers like the hub; no other network is used."""

import hashlib
import json
import os
import pickle
import subprocess
import sys

import pandas as pd
import pytest
import torch
from local_hub import LocalHub, serving
from shell_commands import PROGRAM

import camae
from camae.embedding_table import read_table
from camae.errors import CamaeError, MissingBackendError, OutputError
from camae.model import hub, load, save
from camae.model.weights import convert

pytest.importorskip("huggingface_hub")
REPOSITORY = "owner/Open-Model"


@pytest.fixture
def model(tiny):
    return tiny(channels=("DNA", "ER", "Mito"))


def use_addresses(monkeypatch, template):
    """Addresses of files, in the module where this version of huggingface_hub looks them up."""
    from huggingface_hub import constants, file_download

    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


@pytest.fixture
def served(model, tmp_path, monkeypatch):
    """A hub with the tiny model in one repository, which this process and its children talk to."""
    from huggingface_hub import constants

    weights = save(model, tmp_path / "source" / "model.safetensors").read_bytes()
    made = LocalHub()
    made.commit = made.add(
        REPOSITORY, {"model.safetensors": weights, "README.md": b"# a card"}, ("main", "v1.0")
    )
    made.weights, made.cache = weights, tmp_path / "cache"
    with serving(made):
        monkeypatch.setattr(constants, "ENDPOINT", made.endpoint)
        template = made.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        use_addresses(monkeypatch, template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(made.cache))
        monkeypatch.setenv("HF_ENDPOINT", made.endpoint)
        monkeypatch.setenv("HF_HUB_CACHE", str(made.cache))
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its attempts
        hub._fetch.cache_clear()
        yield made
        hub._fetch.cache_clear()


def expected_origin(served, revision="main"):
    return {
        "repository": REPOSITORY,
        "revision": revision,
        "commit": served.commit,
        "file": "model.safetensors",
        "sha256": hashlib.sha256(served.weights).hexdigest(),
    }


def same(a, b):
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("revision", ["main", "v1.0", "commit"])
def test_weights_by_name_are_those_of_the_file_and_say_where_from(served, model, revision):
    revision = served.commit if revision == "commit" else revision
    loaded = load(f"hf://{REPOSITORY}@{revision}")
    assert same(loaded, model)
    assert loaded.origin == expected_origin(served, revision)
    assert hub.pinned(loaded.origin) == f"hf://{REPOSITORY}@{served.commit}/model.safetensors"
    assert same(load(hub.pinned(loaded.origin)), model)


def test_a_name_without_a_revision_is_the_branch_main(served):
    assert load(f"hf://{REPOSITORY}").origin == expected_origin(served)


def test_a_branch_with_a_slash_is_written_with_percent_2f(served):
    commit = served.add(REPOSITORY, {"model.safetensors": served.weights}, ("refs/pr/1",), "c" * 40)
    assert load(f"hf://{REPOSITORY}@refs%2Fpr%2F1").origin["commit"] == commit


def test_a_process_asks_once_for_a_name(served):
    for _ in range(3):
        load(f"hf://{REPOSITORY}@main")
    assert [method for method, _, _ in served.requests] == ["HEAD", "GET"]


def test_a_file_in_a_folder_of_the_repository(served, model):
    served.add(REPOSITORY, {"big/weights.safetensors": served.weights}, ("nested",), "d" * 40)
    loaded = load(f"hf://{REPOSITORY}@nested/big/weights.safetensors")
    assert same(loaded, model)
    assert (loaded.origin["commit"], loaded.origin["file"]) == ("d" * 40, "big/weights.safetensors")


def test_without_a_name_prefix_no_network_is_used(served, tmp_path):
    with pytest.raises(CamaeError, match="no such model, file or folder"):
        load(REPOSITORY)
    assert served.requests == []


def test_a_torch_file_is_found_where_there_is_no_safetensors_file(served, tmp_path):
    """The second of the names that are looked for; read by the reader that runs no pickle."""
    torch.save({"state_dict": {"x": torch.zeros(2)}}, tmp_path / "w.bin")
    served.add("owner/torch", {"pytorch_model.bin": (tmp_path / "w.bin").read_bytes()})
    with pytest.raises(CamaeError, match=r"pytorch_model.bin: neither a camae model"):
        load("hf://owner/torch")


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_no_pickle_runs(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harmful()}, tmp_path / "w.bin")
    served.add("owner/zip", {"pytorch_model.bin": (tmp_path / "w.bin").read_bytes()})
    with pytest.raises(CamaeError, match="its pickle could run code"):
        load("hf://owner/zip")
    served.add("owner/bare", {"model.pt": pickle.dumps(Harmful())})
    with pytest.raises(CamaeError, match="a bare pickle, which is never loaded"):
        load("hf://owner/bare")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "name",
    [
        "hf://owner",
        "hf://owner/name@",
        "hf://owner/name@a@b",
        "hf://owner/name@main/../../x",
        "hf://@main",
        "hf://owner/name@..%2F..%2Fx/model.safetensors",  # a revision is a path in the cache
        "hf://owner/name@main/..%2fx",
        "hf://owner/name@main//etc/passwd",
        "hf://owner/name@main/x\\..\\y",
    ],
)
def test_a_name_of_another_form_is_refused(served, name):
    with pytest.raises(
        CamaeError, match=r"not a name of weights on the hub; write it as hf://owner/name@revision"
    ):
        load(name)
    assert served.requests == []


def test_what_is_not_there_is_one_sentence(served):
    with pytest.raises(
        CamaeError, match=r"^hf://owner/none@main: there is no repository owner/none, or it is priv"
    ):
        load("hf://owner/none@main")
    with pytest.raises(
        CamaeError, match=r"the repository has no revision v9; name a branch, a tag or a whole commit"
    ):
        load(f"hf://{REPOSITORY}@v9")
    with pytest.raises(
        CamaeError, match=r"there is no file other.safetensors in the repository at this revision"
    ):
        load(f"hf://{REPOSITORY}@main/other.safetensors")
    served.add("owner/card", {"README.md": b"only a card"})
    with pytest.raises(
        CamaeError, match=r"no file of weights \(model.safetensors, pytorch_model.bin, model.pt, "
    ):
        load("hf://owner/card@main")
    with pytest.raises(CamaeError, match=r"'owner/-bad-' cannot be the name of a repository"):
        load("hf://owner/-bad-@main")


def test_a_gated_repository_says_how_to_get_in(served):
    served.gated.add(REPOSITORY)
    with pytest.raises(CamaeError, match=r"the repository is gated: ask for access on its page, then log in"):
        load(f"hf://{REPOSITORY}@main")


def test_a_file_that_is_no_weights_is_refused_by_its_content(served):
    with pytest.raises(CamaeError, match=r"README.md: not a readable model file"):
        load(f"hf://{REPOSITORY}@main/README.md")


def test_without_a_network_the_cache_serves_what_it_has(served, model):
    load(f"hf://{REPOSITORY}@main")
    hub._fetch.cache_clear()
    served.broken = True
    assert same(load(f"hf://{REPOSITORY}@main"), model)
    with pytest.raises(
        CamaeError, match=r"the hub at http://127.0.0.1:\d+ cannot be reached \(.*500.*\) and it is not in"
    ):
        load(f"hf://{REPOSITORY}@v1.0")


def test_no_network_is_one_sentence(served, monkeypatch, caplog):
    use_addresses(monkeypatch, "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(
        CamaeError, match=r"cannot be reached \(.*Error.*\) and it is not in the cache, .*; check the net"
    ) as caught:
        load(f"hf://{REPOSITORY}@main")
    # Of the errors that hold each other the innermost, and none of the lines about attempts.
    assert "refused" in str(caught.value)
    assert "Max retries" not in str(caught.value)
    assert [r.name for r in caplog.records if r.name.startswith("huggingface_hub")] == []


def test_a_damaged_download_is_named(served):
    file = hub.fetch(f"hf://{REPOSITORY}@main").path
    blob = file.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    hub._fetch.cache_clear()
    with pytest.raises(
        CamaeError, match=r"is damaged: its SHA-256 is [0-9a-f]{64} and the hub says [0-9a-f]{64}; del"
    ):
        load(f"hf://{REPOSITORY}@main")


def test_a_cache_that_cannot_be_written_is_named(served, tmp_path, monkeypatch):
    from huggingface_hub import constants

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match=r"file/cache cannot be written: a file is in the way"):
        load(f"hf://{REPOSITORY}@main")


def test_without_the_package_one_sentence_says_what_to_install(served, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        MissingBackendError, match=r"need the package huggingface_hub.*pip install 'camae\[hub\]'"
    ):
        load(f"hf://{REPOSITORY}@main")


def test_a_converted_file_still_says_where_it_came_from(served, tmp_path):
    path = convert(f"hf://{REPOSITORY}@v1.0", tmp_path / "copy.safetensors")
    assert load(path).origin == expected_origin(served, "v1.0")
    assert load(tmp_path / "source" / "model.safetensors").origin == {}


def test_every_output_of_a_screen_records_revision_and_hash(served, screen, tmp_path):
    name = f"hf://{REPOSITORY}@v1.0"
    camae.embed_screen(screen, model=name, out=tmp_path / "emb", quiet=True)
    expected = expected_origin(served, "v1.0")
    assert json.loads((tmp_path / "emb" / "ledger.json").read_text())["origin"] == expected
    for table in [tmp_path / "emb" / "wells.parquet", *(tmp_path / "emb" / "sites").glob("*.parquet")]:
        assert read_table(table)[1]["origin"] == expected
    own = tmp_path / "source" / "model.safetensors"
    again = camae.embed_screen(screen, model=own, out=tmp_path / "emb", quiet=True)  # the same weights go on
    plain = camae.embed_screen(screen, model=own, out=tmp_path / "own", quiet=True)
    pd.testing.assert_frame_equal(again, plain)
    assert "origin" not in json.loads((tmp_path / "own" / "ledger.json").read_text())


def test_training_from_weights_by_name_records_them(served, screen, tmp_path):
    sizes = {
        "width": 32,
        "heads": 2,
        "depth": 3,
        "crop": 32,
        "patch": 8,
        "layer_scale": 0.5,
        "drop_path": 0.0,
    }
    sizes["decoder"] = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
    options = {
        "model": "ca_mae_vit_ti16",
        "model_options": sizes,
        "batch_size": 4,
        "val": None,
        "quiet": True,
    }
    options |= {"init": f"hf://{REPOSITORY}@main", "out": tmp_path / "run"}
    camae.train(screen, steps=1, **options)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["init_origin"]
    assert recorded == expected_origin(served)
    served.add(REPOSITORY, {"model.safetensors": served.weights}, ("main",), "e" * 40)  # the branch moves
    hub._fetch.cache_clear()
    camae.train(screen, steps=1, **options)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["init_origin"] == recorded
    assert load(tmp_path / "run").origin == {}


def shell(*arguments, **variables):
    environment = os.environ | {"COLUMNS": "400"} | variables
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def test_the_shell_embeds_by_name_and_then_offline(served, screen, tmp_path):
    name = f"hf://{REPOSITORY}@v1.0"
    code, said = shell("embed", screen, "--model", name, "--out", tmp_path / "a", HF_HUB_OFFLINE="1")
    assert code == 2
    assert (
        f"error: {name}: HF_HUB_OFFLINE forbids the network and it is not in the cache, {served.cache}; load"
        in said
    )
    assert served.requests == []
    code, said = shell("embed", screen, "--out", tmp_path / "a", CAMAE_MODEL=name)
    assert code == 0, said
    answered = len(served.requests)
    code, said = shell("embed", screen, "--model", name, "--out", tmp_path / "b", HF_HUB_OFFLINE="1")
    assert code == 0, said
    assert len(served.requests) == answered
    ledgers = [json.loads((tmp_path / out / "ledger.json").read_text()) for out in "ab"]
    assert ledgers[0] == ledgers[1]
    assert ledgers[0]["origin"] == expected_origin(served, "v1.0")
    code, said = shell("convert", name, tmp_path / "c.safetensors", HF_HUB_OFFLINE="1")
    assert code == 0, said
    assert load(tmp_path / "c.safetensors").origin == expected_origin(served, "v1.0")
