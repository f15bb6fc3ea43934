"""What holds for every test: shapes and types are checked, threads are shared out, no network.

The environment is set before anything imports PyTorch, and is inherited by the programs and
notebook kernels that tests start.
"""

import os
import socket

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, (os.cpu_count() or 1) // WORKERS)
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = str(THREADS)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A checked cell of a notebook prints no bar; tqdm reads the switch once, and here, in tests, shows its own.
os.environ.pop("TQDM_DISABLE", None)
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import tqdm  # noqa: E402, F401

os.environ["TQDM_DISABLE"] = "1"

from tests.checked import checked  # noqa: E402

# Every annotated function of the package now checks its arguments and its result.
jaxtyping.jaxtyped = checked
jaxtyping.install_import_hook("llmcourse", "beartype.beartype")

LOOPBACK = ("127.", "::1", "localhost")


class NetworkForbidden(RuntimeError):
    """A test reached for the network; the suite passes offline or not at all."""


def _guard(connect):
    def guarded(self, address):
        remote = self.family in (socket.AF_INET, socket.AF_INET6)
        if remote and not str(address[0]).startswith(LOOPBACK):
            raise NetworkForbidden(f"tests must stay on this machine, got a connection to {address[0]}")
        return connect(self, address)

    return guarded


socket.socket.connect = _guard(socket.socket.connect)
socket.socket.connect_ex = _guard(socket.socket.connect_ex)


def pytest_ignore_collect(collection_path, config):
    """For `-m alone`, files without such a test are not imported: all of them take most of a minute."""
    if config.option.markexpr == "alone" and collection_path.suffix == ".py":
        return "mark.alone" not in collection_path.read_text(encoding="utf-8") or None
    return None


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A folder with a Llama of random weights over 300 tokens, which loads in no time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny_tokenizer import tiny_tokenizer_json

    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    return folder
