"""Files of models that lie: whatever their headers say is one sentence, before memory is taken or a layer is made."""

import json
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.serve.server import small_model
from tenfold.model.io.gguf import read_gguf
from tenfold.model.io.huggingface import check_model, read_model
from tenfold.spec.errors import TenfoldError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """A small file as llama.cpp's package writes it."""
    import numpy as np
    from gguf import GGUFWriter

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "b", "c"])
    shapes = {"token_embd": (3, 8), "output_norm": (8,)}
    shapes |= {f"blk.0.{name}": (8, 8) for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {f"blk.0.{name}": (8,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def changed(directory, to, fields):
    """A copy with other fields in its config.json."""
    to.mkdir()
    for file in directory.iterdir():
        (to / file.name).symlink_to(file)
    config = json.loads((to / "config.json").read_text()) | fields
    (to / "config.json").unlink()
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("fields", [
    {"num_hidden_layers": 10**9}, {"hidden_size": 2**40}, {"vocab_size": 2**50}, {"intermediate_size": 2**40},
    {"num_attention_heads": 0}, {"num_hidden_layers": "many"}, {"num_key_value_heads": -1}, {"hidden_size": None}, {"head_dim": 2**40},
    {"rope_parameters": [1]}, {"model_type": ["llama"]},
])  # fmt: skip
def test_a_config_that_its_weights_contradict(directory, tmp_path, fields):
    with pytest.raises(TenfoldError, match=r"^[^\n]*\.$"):
        check_model(changed(directory, tmp_path / "changed", fields))


def test_the_true_ones_are_read(directory, gguf):
    check_model(directory)
    assert read_model(gguf).spec.n_layers == 1


@pytest.mark.parametrize("length", [2**22, 2**32, 2**63])
@pytest.mark.parametrize("kind", [4, 9], ids=["numbers", "arrays"])
def test_an_array_that_no_file_could_hold(gguf, tmp_path, length, kind):
    data, key = gguf.read_bytes(), b"tokenizer.ggml.tokens"
    at = data.index(key) + len(key) + 4
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data[:at] + struct.pack("<IQ", kind, length) + data[at + 12 :])
    with pytest.raises(TenfoldError, match="has an array of"):
        read_gguf(broken)


def test_layers_that_a_gguf_file_does_not_have(gguf, tmp_path):
    data, key = gguf.read_bytes(), b"llama.block_count"
    at = data.index(key) + len(key) + 4
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data[:at] + struct.pack("<I", 10**6) + data[at + 4 :])
    with pytest.raises(TenfoldError, match="1000000 layers"):
        read_model(broken)


def damaged(data, at, value):
    at = int(at * (len(data) - len(value)))
    return data[:at] + value + data[at + len(value) :]


bytes_anywhere = st.tuples(
    st.floats(0, 1), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff", b"\x7f", b"\0", b"9", b"{", b"\x80\0\0\0"])
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(bytes_anywhere, min_size=1, max_size=3))
def test_a_damaged_gguf_header_is_one_sentence(gguf, tmp_path, damages):
    data = gguf.read_bytes()
    head, rest = data[:1200], data[1200:]
    for damage in damages:
        head = damaged(head, *damage)
    broken = tmp_path / f"broken{hash(head)}.gguf"  # readers remember what they read by its path
    broken.write_bytes(head + rest)
    try:
        read_model(broken)
    except TenfoldError as error:
        assert "\n" not in str(error)
    finally:
        broken.unlink()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(bytes_anywhere, min_size=1, max_size=3), st.booleans())
def test_damaged_safetensors_and_configs_are_one_sentence(directory, tmp_path, damages, of_weights):
    broken = tmp_path / f"broken{hash((tuple(damages), of_weights))}"
    changed(directory, broken, {})
    file = broken / ("model.safetensors" if of_weights else "config.json")
    data = file.read_bytes()
    head, rest = data[:2000], data[2000:]
    for damage in damages:
        head = damaged(head, *damage)
    file.unlink()
    file.write_bytes(head + rest)
    with suppress(TenfoldError):
        read_model(broken)
