"""From files to plain data: GGUF, configuration, tokenizer, chat template. Imports no torch."""
