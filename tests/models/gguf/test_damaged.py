"""Damaged and hostile GGUF files: one line each, and no more memory than the file is worth."""

import itertools
import struct
import tracemalloc
from pathlib import Path

import chat_families
import gguf_files
import hf_checkpoints
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prl_jax.errors import UserError
from prl_jax.gguf_file import MAX_HEADER, MAX_PAIRS, MAX_TENSORS, read_header
from prl_jax.models.gguf import from_gguf
from prl_jax.text.tokenizer import load_tokenizer

ONE_LAYER = {**hf_checkpoints.CASES["llama"], "num_hidden_layers": 1}
NUMBER = itertools.count()
NUMBERS = (0, 1, 2**7, 2**8 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A file with a tokenizer."""
    folder = tmp_path_factory.mktemp("damaged")
    directory = chat_families.write_tokenizer(folder / "hf", chat_families.FAMILIES["llama2"])
    tokens = gguf_files.tokens_of(directory)
    config = {**ONE_LAYER, "vocab_size": len(tokens["tokenizer.ggml.tokens"])}
    return gguf_files.write(folder / "m.gguf", config, tokens=tokens).read_bytes()


@pytest.fixture(scope="module")
def size(whole, tmp_path_factory) -> int:
    """How many bytes the header of that file has."""
    path = tmp_path_factory.mktemp("header") / "m.gguf"
    path.write_bytes(whole)
    return min(tensor.start for tensor in read_header(path).tensors.values())


def reads_or_refuses(folder: Path, data: bytes) -> str:
    """Reads model and tokenizer of a file; what is wrong with it, if anything, in one line."""
    path = folder / f"{next(NUMBER)}.gguf"  # a header is kept by name, size and time, and these are quick
    path.write_bytes(data)
    try:
        from_gguf(path)
        load_tokenizer(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000 and path.name in str(error), error
        return str(error)
    finally:
        path.unlink()
    return ""


def test_a_whole_file_is_read(whole, tmp_path):
    assert reads_or_refuses(tmp_path, whole) == ""


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), in_header=st.booleans())
def test_a_file_that_is_cut_off_is_refused(whole, size, tmp_path_factory, share, in_header):
    end = int(share * (size if in_header else len(whole)))
    assert reads_or_refuses(tmp_path_factory.getbasetemp(), whole[:end])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_header_with_other_bytes_is_read_or_refused(whole, size, tmp_path_factory, data):
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        # The pairs of metadata, the tokens, or the descriptions of tensors.
        start = data.draw(st.sampled_from([8, 24, size // 2, size - 600]))
        place = data.draw(st.integers(start, min(start + 600, size - 8)))
        if data.draw(st.booleans()):
            changed[place] = data.draw(st.integers(0, 255))
        else:
            changed[place : place + 8] = struct.pack("<Q", data.draw(st.sampled_from(NUMBERS)))
    reads_or_refuses(tmp_path_factory.getbasetemp(), bytes(changed))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def file(*parts: bytes, tensors: int = 0, pairs: int = 1, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, pairs) + b"".join(parts)


def tensor(*shape: int, kind: int = 0, offset: int = 0, axes: int | None = None) -> bytes:
    sizes = b"".join(struct.pack("<Q", n) for n in shape)
    return (
        text("t") + struct.pack("<I", len(shape) if axes is None else axes) + sizes + struct.pack("<IQ", kind, offset)
    )


HUGE = 2**62
HOSTILE = {
    "begins with b'GGML', expected b'GGUF'": file(magic=b"GGML"),
    "GGUF of version 1 is not supported": file(version=1),
    "GGUF big-endian is not supported": file(version=3 << 24),
    f"{HUGE} pairs of metadata, expected at most {MAX_PAIRS}": file(pairs=HUGE),
    f"{HUGE} tensors, expected at most {MAX_TENSORS}": file(tensors=HUGE, pairs=0),
    f"a name of {HUGE} bytes": file(struct.pack("<Q", HUGE)),
    "it ends in its header": file(text("a"), struct.pack("<IQ", 8, HUGE)),
    '"a" ends behind the header': file(text("a"), struct.pack("<IIQ", 9, 8, HUGE)),
    '"a" of the unknown type 13': file(text("a"), struct.pack("<I", 13)),
    '"a" is a list of the unknown type 9': file(text("a"), struct.pack("<IIQ", 9, 9, 1)),
    'the key "a" twice': file(*[text("a") + struct.pack("<IB", 0, 1)] * 2, pairs=2),
    r'the name "a\nb"': file(text("a\nb")),
    "codec can't decode": file(struct.pack("<Q", 1) + b"\xff"),
    "general.alignment=3": file(text("general.alignment"), struct.pack("<II", 4, 3)),
    f"ends at byte {4 * HUGE + 64}": file(tensor(HUGE), tensors=1, pairs=0),
    f"ends at byte {HUGE + 64 + 128}": file(tensor(32, offset=HUGE), tensors=1, pairs=0) + bytes(40),
    "of the unknown type 99": file(tensor(32, kind=99), tensors=1, pairs=0),
    "rows of 33, no multiple of the 32 of Q8_0": file(tensor(33, kind=8), tensors=1, pairs=0),
    "a tensor of 1000000 axes": file(tensor(axes=1_000_000), tensors=1, pairs=0),
    'tensor "t" of shape [0]': file(tensor(0), tensors=1, pairs=0),
    'the tensor "t" twice': file(tensor(1), tensor(1), tensors=2, pairs=0) + bytes(200),
}


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_numbers_cost_no_memory(words, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE[words])
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_header_is_no_larger_than_any_that_is_known(tmp_path):
    path = tmp_path / "m.gguf"
    with open(path, "wb") as out:
        out.write(file(text("a"), struct.pack("<IIQ", 9, 0, MAX_HEADER)))
        out.truncate(MAX_HEADER * 3)  # a hole, which takes no place on the disk
    tracemalloc.start()
    with pytest.raises(UserError, match=f"a header of more than {MAX_HEADER} bytes"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


def test_a_file_that_changes_is_read_anew(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", ONE_LAYER)
    assert read_header(path) is read_header(path)
    before = read_header(path).metadata["llama.context_length"]
    gguf_files.write(path, ONE_LAYER, changed={"llama.context_length": 128})
    assert (before, read_header(path).metadata["llama.context_length"]) == (64, 128)
