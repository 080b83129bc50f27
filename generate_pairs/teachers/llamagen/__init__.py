"""The LlamaGen family: transformer, tokenizer, teacher."""
