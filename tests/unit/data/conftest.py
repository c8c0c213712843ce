"""Tokenizers small enough to count by hand, and the same rows as Parquet and as JSON lines."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .rows import COLUMNS

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["</s>", "<s>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def make_tokenizer():
    """One token per byte, but for the merges given; `bos` puts <s> before every text, as Llama and OPT do."""

    def make(merges=(), bos=False, chat_template=None, eos="</s>"):
        vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
        tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=list(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
        parts = [processors.ByteLevel(trim_offsets=True)]
        if bos:
            parts.append(
                processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
            )
        tokenizer.post_processor = processors.Sequence(parts)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, name_or_path="hand-made")
        fast.chat_template = chat_template
        return fast

    return make


@pytest.fixture
def parquet(tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "rows.parquet", row_group_size=2)
    return tmp_path / "rows.parquet"


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, pa.table(COLUMNS).to_pylist())))
    return path
