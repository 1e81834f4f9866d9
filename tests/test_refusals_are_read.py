"""Every refusal in the source has a sentence, and a test reads some of its words."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
ERRORS = {"CamaeError", "MissingFileError", "MissingBackendError", "OutputError"}
LEAST = 11  # characters of a message that a test reads

# Refusals that no test of this suite can meet, by words of their own, and why.
UNREAD = {
    "of this node has no GPU: there are": "several GPUs and torchrun",
    "does not return as stored: use reader='native'": "DALI, which needs a GPU's driver",
    "back-end reads single-plane TIFF files only": "DALI",
    "would silently read the first only": "DALI",
    "but this pipeline reads": "DALI",
    "DALI reads each of": "DALI",
    "the native reader is not built": "a package without its native part",
    "has no oneDNN, which packed": "a torch without oneDNN",
    "torch_varlen is deterministic only under": "the back-end torch_varlen, on a GPU",
    "the attention kernels take bf16 or fp16": "a GPU",
    "lion's kernel takes contiguous fp32, bf16": "a GPU",
    "UMAP needs more than 15": "the package umap",
    "where gray planes are meant: export it": "a vendor's file in color",
    "holds {} images where its name": "a vendor's file of several scenes",
    "the attention kernels have head dims": "a GPU",
    "the kernel takes bfloat16 or float16": "a GPU",
    "there are {} GPUs here": "several GPUs",
    "{}; choose a folder on another": "a file system that cannot lock files",
    "model configuration: {}": "the sentences of a table of checks, each with its test",
    "a projection is one plane": "a caller inside the package, which asks for one",
    "the probe's sites differ in channels": "a probe of two plates with unequal channels, pooled by channel",
    "positions in a channel are not": "a model file written to deceive: released grids are square",
    "is damaged; {} again": "one of three sentences of the same file, whose other two are read",
}


def message(call):
    """Text of the arguments of an error, values as {}."""
    texts = []
    for argument in call.args:
        for node in ast.walk(argument):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return max(texts, key=len, default="")


@cache
def refusals():
    """(file:line, message) of every `raise CamaeError(...)`, and of its kinds."""
    found = []
    for folder in ("camae", "dataloader", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                call = node.exc if isinstance(node, ast.Raise) else None
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ERRORS:
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno}", message(call)))
    return found


@cache
def texts_of_tests():
    """Every text of the tests, without the backslashes of regular expressions, blanks as one."""
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        if path.name == Path(__file__).name:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"\\(.)", r"\1", node.value))
    return " ".join("\n".join(found).split())


def runs_of_words(text):
    """Two and three words of a message at a time, between its values; a single word alone."""
    for part in text.split("{}"):
        words = part.strip(" ,;:").split()
        for length in (2, 3):
            for i in range(max(1, len(words) - length + 1)):
                run = " ".join(words[i : i + length]).strip(" ,;:.()")
                if len(run) >= LEAST:
                    yield run


def test_every_refusal_is_read_by_a_test():
    unread = []
    for place, text in refusals():
        runs = list(runs_of_words(text))
        # A message of values alone says what another error said, or what a table of checks says.
        if runs and not any(run in texts_of_tests() for run in runs) and not any(w in text for w in UNREAD):
            unread.append(f"{place}: {text}")
    assert unread == [], "write a test that reads these sentences"


def test_the_search_finds_refusals():
    places = [place for place, _ in refusals()]
    assert len(places) > 500
    assert {place.split("/")[0] for place in places} == {"camae", "dataloader", "kernels"}
    found = set(runs_of_words("{}: holds {} planes where one is damaged"))
    assert found == {"planes where", "planes where one", "where one is", "one is damaged"}


def test_what_cannot_be_read_is_in_the_source():
    texts = [text for _, text in refusals()]
    assert [words for words in UNREAD if not any(words in text for text in texts)] == []
