"""needle: a two-megaparameter model that finds facts in long texts; the repository's own reference model."""

from pathlib import Path

WEIGHTS: Path = Path(__file__).parent / "weights"
"""Folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."""
