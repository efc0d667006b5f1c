"""Export writes what transformers loads."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from headway.engine.needle.export import export, shape_of
from headway.engine.needle.model import Needle, Shape

SMALL = Shape(vocab_size=50, hidden_size=64, intermediate_size=32, num_hidden_layers=2)


def test_export_loads_and_computes_the_same(tmp_path: Path) -> None:
    ours = Needle(SMALL)
    export(ours.state_dict(), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(ours.logits(ours(ids, ids)), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    assert not list(tmp_path.glob("*.tmp"))


def test_shape_is_read_off_the_weights() -> None:
    assert shape_of(Needle(SMALL).state_dict()) == SMALL
